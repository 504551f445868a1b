// Elements, and how things are said. Text from elsewhere becomes text nodes, and nothing here makes markup of it.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (name === "href" && !String(value).startsWith("#/")) throw new Error(`a link out of the dashboard: ${value}`);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((one) => one !== null && one !== undefined && one !== false));
  return element;
}

/** An element; `on…` are listeners, `style` an object. Children are nodes or text. */
export const h = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);

export const svg = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

/** Put these in place of what is there; what had the focus has it again, if it is there still. */
export function replace(parent, ...children) {
  const active = document.activeElement;
  const mark = parent.contains(active) ? active.dataset.focus || active.id || active.getAttribute("href") : "";
  parent.replaceChildren(...children.flat().filter(Boolean));
  if (!mark) return;
  for (const one of parent.querySelectorAll("a, button, input, [data-focus]")) {
    if (one.id === mark || one.getAttribute("href") === mark || one.dataset.focus === mark) {
      one.focus({ preventScroll: true });
      return;
    }
  }
}

/** Do it only when what it is made of has changed. */
export function when(parent, what, build) {
  const key = JSON.stringify(what);
  if (parent.made === key) return;
  parent.made = key;
  replace(parent, build());
}

/** Heads may begin with ">" (numbers) or "~" (words that need room). `stack`: on a narrow screen each row is some lines
 * rather than wider than it, and what is not known is left out. */
export function table(caption, heads, rows, empty = "nothing yet", stack = true) {
  if (!rows.length) return h("p", { class: "quiet" }, empty);
  const kinds = heads.map((one) => ({ ">": "number", "~": "text" })[one[0]]);
  const head = heads.map((one, place) => h("th", { scope: "col", class: kinds[place] }, kinds[place] ? one.slice(1) : one));
  const body = rows.map((row) => h("tr", null, row.map((cell, place) => h("td", {
    class: [kinds[place], cell === none || cell === "" ? "none" : ""].filter(Boolean).join(" ") || null,
    "data-label": kinds[place] === "number" ? heads[place].slice(1) : null,
  }, cell))));
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", { class: stack && "stack" }, h("caption", null, caption), h("thead", null, h("tr", null, head)), h("tbody", null, body)),
  );
}

export const facts = (pairs) =>
  h("dl", null, pairs.filter(Boolean).map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));

/** With what is between backticks as code. */
export const prose = (text) => text.split("`").map((part, place) => (place % 2 ? h("code", null, part) : part));

export const count = (much, one, many = `${one}s`) => `${number(much)} ${much === 1 ? one : many}`;

// ---- links -------------------------------------------------------------------------------------------------

export const link = (path, text) => h("a", { href: `#/${path.map(encodeURIComponent).join("/")}` }, text);
export const toFunction = (namespace, name) => link(["function", namespace, name], `${namespace}/${name}`);
export const toWhy = (id, text) => link(["why", id], text ?? short(id));
/** Ids of one start of the server begin alike. */
export const short = (id) => `…${id.slice(-6)}`;

// ---- figures -----------------------------------------------------------------------------------------------

export const none = "–";

export function ms(value) {
  if (value === null || value === undefined) return none;
  if (value === 0) return "0 ms";
  if (value >= 60_000) return seconds(value / 1000);
  if (value >= 1000) return `${(value / 1000).toPrecision(3)} s`;
  return `${value >= 100 ? value.toFixed(0) : value.toPrecision(2)} ms`;
}

export function seconds(value) {
  if (value === null || value === undefined) return none;
  if (value < 1) return ms(value * 1000);
  if (value < 100) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  if (value < 129_600) return `${(value / 3600).toFixed(1)} h`;
  return `${(value / 86_400).toFixed(1)} days`;
}

export function mb(value) {
  if (value === null || value === undefined) return none;
  if (value === 0) return "0 MB";
  if (value >= 1000) return `${(value / 1000).toPrecision(3)} GB`;
  return `${value >= 10 ? value.toFixed(0) : value.toFixed(1)} MB`;
}

export const percent = (value) => (value === null || value === undefined ? none : `${(value * 100).toFixed(1)}%`);
export const number = (value, digits = 3) =>
  value === null || value === undefined
    ? none
    : value !== 0 && Math.abs(value) < 1
      ? String(Number(value.toPrecision(digits)))
      : value.toLocaleString("en", { maximumFractionDigits: 2 });
export const clock = (wall) => new Date(wall * 1000).toLocaleTimeString("en-GB");
export const date = (wall) => new Date(wall * 1000).toLocaleString("en-GB");
