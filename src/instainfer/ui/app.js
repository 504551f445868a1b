// The shell: which page is shown, the feed that all of them share, the key and the colours.

import { follow, get, key } from "./api.js";
import { h } from "./dom.js";
import { store } from "./store.js";
import * as clusterPage from "./cluster.js";
import * as functionPage from "./function.js";
import * as functionsPage from "./functions.js";
import * as nowPage from "./now.js";
import * as policiesPage from "./policies.js";
import * as timelinePage from "./timeline.js";
import * as whyPage from "./why.js";

const PAGES = {
  now: nowPage,
  timeline: timelinePage,
  functions: functionsPage,
  policies: policiesPage,
  cluster: clusterPage,
  function: functionPage,
  why: whyPage,
};
const LISTED = ["now", "timeline", "functions", "cluster", "policies"];

/** What pages may know: the latest event, and whether the key may change things of a namespace. */
export const app = {
  event: null,
  mayAct: (namespace) => {
    const who = app.event?.who;
    return Boolean(who) && who.role !== "invoke" && (who.namespace === "" || who.namespace === namespace);
  },
};

const main = document.getElementById("main");
let shown = null; // the page's view: { update?(app), close?() }
let shownAt = "";

// ---- pages -------------------------------------------------------------------------------------------------

function route(focus = true) {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  const page = PAGES[name] ?? nowPage;
  if (shownAt === location.hash && shown) return;
  shownAt = location.hash;
  shown?.close?.();
  document.title = `${page.title(rest)} · instainfer`;
  const under = { why: "timeline", function: "functions" }[name] ?? (PAGES[name] ? name : "now");
  for (const one of document.querySelectorAll("#pages a")) {
    if (one.getAttribute("href") === `#/${under}`) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  const heading = h("h1", { tabindex: -1 }, page.title(rest));
  main.replaceChildren(heading);
  shown = page.show(main, rest, app);
  if (app.event) shown.update?.(app);
  if (focus) heading.focus();
  scrollTo(0, 0);
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

document.getElementById("pages").append(...LISTED.map((name) => h("a", { href: `#/${name}`, hidden: name === "cluster" }, PAGES[name].title([]))));
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", () => route());

// ---- the feed ----------------------------------------------------------------------------------------------

const SAID = { live: "live", away: "not connected: trying again", locked: "a key is needed" };
const link = document.getElementById("link");

function told(event) {
  app.event = event;
  if (event.anew) {
    store.clear();
    history();
  }
  store.add(event.invocations);
  store.leftOut += event.left_out;
  store.addMarks(event.marks);
  document.querySelector("#pages a[href='#/cluster']").hidden = !(event.now.nodes?.length > 1);
  document.getElementById("forget").hidden = !key.get();
  shown?.update?.(app);
}

/** What there was before the feed began; the store takes each invocation once. */
async function history() {
  const began = app.event.id;
  try {
    const { activations } = await get(["activations"], { limit: 2000 });
    if (began.split(".")[0] === app.event.id.split(".")[0]) store.add(activations.reverse());
    shown?.update?.(app);
  } catch {
    // the feed goes on without it
  }
}

function state(word) {
  if (link.dataset.state === word) return;
  link.dataset.state = word;
  link.textContent = SAID[word];
}

function locked(problem) {
  return new Promise((done) => {
    const field = h("input", { type: "password", autocomplete: "off", required: true, name: "key", id: "key" });
    const said = key.get() ? `The server says: ${problem.message}` : "This server asks for a key.";
    const form = h(
      "form",
      null,
      h("h2", null, "Key"),
      h("p", null, `${said} It is kept in this tab until it is closed.`),
      h("label", null, "Key of a namespace (id:secret), or the server's own", field),
      h("button", null, "Look"),
    );
    const dialog = h("dialog", { "aria-label": "Key" }, form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      key.set(field.value.trim());
      dialog.close();
      dialog.remove();
      done();
      shownAt = ""; // what it could not read, it reads now
      route();
    });
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.body.append(dialog);
    dialog.showModal();
  });
}

document.getElementById("forget").addEventListener("click", () => {
  key.forget();
  location.reload();
});

// ---- colours -----------------------------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];
const theme = document.getElementById("theme");

function paint(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  theme.textContent = `Theme: ${name}`;
  dispatchEvent(new Event("painted"));
}

theme.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(localStorage.getItem("instainfer-theme") ?? "auto") + 1) % THEMES.length];
  localStorage.setItem("instainfer-theme", next);
  paint(next);
});
paint(THEMES.find((one) => one === localStorage.getItem("instainfer-theme")) ?? "auto");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("painted")));

route(false);
follow(told, state, locked);
