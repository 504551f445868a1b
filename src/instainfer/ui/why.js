// One activation: where its time went, what was expected then, what was decided, and what would have made it faster.

import { get } from "./api.js";
import { compare, legend, plain } from "./phases.js";
import { date, facts, h, mb, ms, none, number, percent, prose, seconds, short, table, toFunction } from "./dom.js";
import { troubled } from "./trouble.js";

export const title = ([id]) => `Why ${short(id ?? "")}`;

const COLD = ["cold", "forked", "imported", "cloned"]; // the first of them that there was

export function show(main, [id]) {
  if (!id) {
    main.append(h("p", null, "Of which call? ", h("a", { href: "#/timeline" }, "The timeline"), " has the latest, each with a link."));
    return { close() {} };
  }
  const body = h("div", null, h("p", { class: "quiet" }, "asking"));
  main.append(body);
  const abort = new AbortController();
  troubled(body, async () => {
    const told = await get(["activations", id, "why"], {}, abort.signal);
    const one = told.activation;
    const [{ activations }, { logs }] = await Promise.all([
      get(["activations"], { namespace: one.namespace, function: one.function, limit: 500 }, abort.signal),
      get(["activations", id, "logs"], {}, abort.signal),
    ]);
    body.replaceChildren(...page(told, activations, logs));
  });
  return { close: () => abort.abort() };
}

function page(told, others, logs) {
  const one = told.activation;
  const rows = [["this one", plain(one.phases), one.e2e_ms]];
  const peers = others.filter((other) => other.status === "ok" && other.id !== one.id);
  for (const [name, kinds] of [["its cold", COLD], ["its warm", ["warm"]]]) {
    const kind = kinds.find((start) => peers.some((other) => other.start === start));
    const median = middle(peers.filter((other) => other.start === kind));
    if (median) rows.push([`${name} (${kind}, median of ${median.of})`, plain(median.phases), median.e2e_ms]);
  }
  return [
    facts([
      ["Function", toFunction(one.namespace, one.function)],
      ["Version", String(one.version)],
      ["Start", one.start || "none: it never got an instance"],
      ["Status", one.status],
      ["Took", ms(one.e2e_ms)],
      ["When", date(one.wall)],
      told.owner && ["Container", `${one.container}, owner then ${told.owner}`],
      told.origin && ["Instance", `${one.instance}, ${told.origin}`],
      ["Reproduced", told.reproduced ? "yes: a replay of the log comes to the same start" : "no"],
    ]),
    ...(one.error ? [h("h2", null, "Error"), h("p", { class: "bad" }, one.error), one.hint && h("p", null, prose(one.hint)), one.trace && h("pre", { tabindex: 0 }, one.trace)] : []),
    h("h2", null, "Where the time went"), legend(), compare(rows),
    h("h2", null, "What would have made it faster"),
    told.advice.length ? h("ul", null, told.advice.map((line) => h("li", null, prose(line)))) : h("p", null, "Nothing: it found what it needed in memory."),
    h("h2", null, "What was expected then"),
    facts([
      ["Predictor", told.predictor],
      ["Arrivals per second", number(told.rate)],
      ["Probability of one soon", percent(told.probability)],
      ["Since the last arrival", told.last_s === undefined ? none : seconds(told.last_s)],
      told.zygote && ["Its libraries", told.zygote],
    ]),
    h("h2", null, "What was decided"),
    table("decisions about it, the oldest first", ["When", "~What", "~Why", ">Saves", ">Weighs", ">Probability", "Pushed out"],
      told.decisions.map((made) => [
        made.ago_s >= 0 ? `${seconds(made.ago_s)} before` : `${seconds(-made.ago_s)} after`,
        made.what, made.why, ms(made.saves_s === null ? null : made.saves_s * 1000), mb(made.weight_mb),
        percent(made.probability), made.displaced.join(", ") || none,
      ]), "none"),
    h("h2", null, "What it printed"),
    logs.length ? h("pre", { tabindex: 0, class: "logs" }, logs.map((line) => line.text).join("")) : h("p", { class: "quiet" }, "nothing"),
  ].filter(Boolean);
}

/** The one that took neither long nor short. */
function middle(rows) {
  if (!rows.length) return null;
  const ordered = rows.toSorted((a, b) => a.e2e_ms - b.e2e_ms);
  return { ...ordered[(ordered.length - 1) >> 1], of: rows.length };
}
