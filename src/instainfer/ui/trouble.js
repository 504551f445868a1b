// What is shown where an answer was to be and the server refused.

import { h } from "./dom.js";

/** Do it; a Problem is shown in `place`. Anything else is a fault of the page, and stays one. */
export async function troubled(place, act) {
  try {
    await act();
    return true;
  } catch (error) {
    if (error.name === "AbortError") return false;
    if (error.status === undefined) throw error;
    delete place.made; // see `when`: what comes next is shown, be it what was there before
    place.replaceChildren(h("p", { class: "bad", role: "alert" }, error.message), h("p", { class: "quiet" }, error.hint));
    return false;
  }
}
