// What a page shows of a platform in which there is nothing yet: what to do first.

import { h, prose } from "./dom.js";

const STEPS = [
  "`instainfer deploy PATH` a folder with a `main.py` in it; what its imports and its model cost is measured then.",
  "`instainfer invoke NAME`, or the form on the function's page here. The first call is a cold one.",
  "Call it again, and call others: what is expected is loaded before it is called, into memory that warm containers do not use. *Timeline* shows it, and a click on a call tells why it began as it did.",
];

/** Where no function is deployed; where the key may deploy none, it says so. */
export function hello(app) {
  const may = app.event?.who.role !== "invoke";
  return h("section", { class: "card hello", "aria-labelledby": "hello" },
    h("h2", { id: "hello" }, "No function is deployed yet"),
    may
      ? h("ol", null, STEPS.map((one) => h("li", null, prose(one.replaceAll("*", "")))))
      : h("p", null, "This key may call functions and deploy none: ask whoever runs the server for a key of the role deploy."),
    may && h("p", { class: "quiet" }, prose("`instainfer demo` shows the whole story in three minutes, beside this server.")));
}
