// An invocation as a bar of its phases.

import { h, ms } from "./dom.js";
import { PHASES } from "./store.js";

export const legend = () =>
  h("ul", { class: "legend" }, PHASES.map((one) => h("li", null, h("span", { class: `swatch ${one}` }), one)));

/** Of milliseconds by phase, in a scale of `all` milliseconds. */
export function bar(phases, all) {
  const there = PHASES.filter((one) => phases[one] > 0);
  const said = there.map((one) => `${one} ${ms(phases[one])}`).join(", ");
  return h("div", { class: "phases", role: "img", "aria-label": said, title: said },
    there.map((one) => h("span", { class: one, style: { width: `${(100 * phases[one]) / all}%` } })));
}

/** As the API names them. */
export const plain = (given) => Object.fromEntries(PHASES.map((one) => [one, given[`${one}_ms`] ?? 0]));

/** One bar below the other, in the same scale: rows of [name, phases, milliseconds]. */
export function compare(rows) {
  const all = Math.max(...rows.map(([, phases, took]) => Math.max(took, Object.values(phases).reduce((a, b) => a + b, 0))), 1e-6);
  return h("div", { class: "compare" }, rows.flatMap(([name, phases, took]) => [h("span", null, name), bar(phases, all), h("span", { class: "number" }, ms(took))]));
}
