// The nodes of a cluster: how each is, what its memory is used for, and which function is where.

import { post } from "./api.js";
import { clock, count, facts, h, mb, none, number, percent, table, toFunction, when } from "./dom.js";
import { CHANGES, recent } from "./recent.js";
import { troubled } from "./trouble.js";

export const title = () => "Cluster";

const MOST_ROWS = 200;
/** State -> [mark, word, what it means]. */
const STATES = {
  up: ["●", "up", "takes requests"],
  suspect: ["◐", "suspect", "the cluster does not hear of it; as long as its agent answers, it goes on"],
  "out of reach": ["◐", "out of reach", "its agent does not answer: nothing new goes there, and it is not given up yet"],
  draining: ["▽", "draining", "nothing new goes there; it serves until what it has stands elsewhere"],
  drained: ["■", "drained", "it is empty and takes nothing: it can be stopped"],
  joining: ["…", "joining", "it is asked to join, again and again"],
  lost: ["✕", "lost", "what ran there has ended, and its functions go elsewhere; it joins again when it answers"],
};
/** What a request would find, the best first: [class of its swatch, word]. */
const LEVELS = [["inference", "running"], ["own", "warm"], ["ahead", "pre-loaded"], ["guest", "imported"], ["", "loading"]];

/** Of a node, as people say it. */
export const stateOf = (one) => (one.state === "joined" ? (one.cluster === "alive" ? "up" : "suspect") : one.state);

export function show(main, parts, app) {
  const tiles = h("div", { class: "tiles" });
  const said = h("p", { role: "status", class: "quiet", id: "said" });
  const cards = h("div", { class: "cards" });
  const filter = h("input", { type: "search", placeholder: "namespace/function", size: 16 });
  const grid = h("div");
  const changes = h("div");
  let shown = null;
  main.append(
    tiles, h("h2", null, "Nodes"), legend(), said, cards,
    h("h2", null, "What is loaded where"), h("div", { class: "bar" }, h("label", { class: "inline" }, "Show", filter)), grid,
    h("h2", null, "What became of nodes in the last minute"), changes,
  );
  filter.addEventListener("input", () => shown && draw(shown));

  function draw(now) {
    shown = now;
    const nodes = now.nodes ?? [];
    const mayAct = app.mayAct("");
    when(tiles, nodes, () => totals(nodes).map(([name, figure, key]) => h("div", { class: "tile", "data-figure": key },
      h("p", { class: "name" }, name), h("p", { class: "figure" }, figure))));
    when(cards, [now.nodes, mayAct], () => {
      if (!now.nodes) return [h("p", { class: "quiet" }, "Nodes are for the server's owner to see.")];
      const open = nodes.filter((one) => ["up", "suspect"].includes(stateOf(one)));
      return nodes.map((one) => card(one, mayAct && { act, last: open.length === 1 && open[0] === one }));
    });
    const rows = placed(now, filter.value.trim().toLowerCase());
    when(grid, [rows, nodes.map((one) => [one.node, stateOf(one)])], () => [where(nodes, rows)]);
    const young = recent(now.wall).filter((mark) => mark.node && mark.what.startsWith("node_"));
    when(changes, young, () => [table("the latest first", ["Time", "Node", "What", "~Why"],
      young.map((one) => [clock(one.wall), one.node, CHANGES[one.what], one.why]), "nothing")]);
  }

  async function act(node, undo) {
    said.textContent = "…";
    await troubled(said, async () => {
      const one = await post(["nodes", node, "drain"], {}, undo ? { undo: true } : {});
      said.textContent = `${node} is ${stateOf(one)}: ${STATES[stateOf(one)][2]}`;
    });
  }

  return { update: ({ event }) => draw(event.now) };
}

/** [name, figure, key] */
function totals(nodes) {
  const sum = (key) => nodes.reduce((all, one) => all + one[key], 0);
  const up = nodes.filter((one) => stateOf(one) === "up").length;
  return [
    ["Nodes up", `${up} of ${nodes.length}`, "up"],
    ["Memory", mb(sum("memory_mb")), "memory"],
    ["In use", mb(sum("used_mb") - sum("preloaded_mb")), "used"],
    ["Pre-loaded, unused", mb(sum("preloaded_mb")), "ahead"],
    ["Idle in containers", mb(sum("idle_mb")), "idle"],
    ["Promised to nobody", mb(Math.max(0, sum("memory_mb") - sum("committed_mb"))), "free"],
  ];
}

function legend() {
  const entry = (kind, text) => h("li", null, h("span", { class: `swatch ${kind}` }), text);
  return h("ul", { class: "legend" }, entry("own", "in use"), entry("ahead", "pre-loaded, not used yet"), entry("zygote", "library zygotes"),
    entry("idle", "idle in containers: pre-loads go here"), entry("", "promised to nobody"));
}

function card(one, can) {
  const state = stateOf(one);
  const [mark, word, meaning] = STATES[state] ?? ["?", state, ""];
  const used = one.used_mb - one.preloaded_mb;
  const parts = [["own", used], ["ahead", one.preloaded_mb], ["zygote", one.zygote_mb], ["idle", one.idle_mb]];
  const free = Math.max(0, one.memory_mb - one.committed_mb);
  const words = `${mb(used)} in use, ${mb(one.preloaded_mb)} pre-loaded, ${mb(one.idle_mb)} idle, ${mb(free)} promised to nobody`;
  const rates = one.rates;
  return h("article", { class: "card", "data-node": one.node, "data-state": state, "aria-label": `node ${one.node}` },
    h("header", null, h("h3", null, one.node), h("span", { class: `tag state-${state.replaceAll(" ", "-")}` }, `${mark} ${word}`)),
    h("p", { class: "quiet" }, meaning),
    one.problem && h("p", { class: "bad" }, one.problem),
    one.memory_mb > 0 && h("div", { class: "meter", role: "img", "aria-label": words }, parts.map(([kind, size]) =>
      size > 0 && h("span", { class: kind, style: { width: `${(100 * size) / one.memory_mb}%` } }))),
    one.memory_mb > 0 && h("p", { class: "quiet" }, `${mb(one.memory_mb)}: ${words}`),
    facts([
      ["Containers", number(one.containers)],
      ["Instances", number(one.instances)],
      ["Home of", count(one.homes, "function")],
      rates && ["Hit rate", percent(rates.hit_fraction)],
      rates && ["Requests/s", number(rates.per_s)],
      rates && ["Failed", number(rates.failed)],
    ]),
    can && action(one, state, can));
}

function action({ node }, state, { act, last }) {
  const undo = state === "draining" || state === "drained";
  if (!undo && !["up", "suspect", "out of reach"].includes(state)) return null;
  return h("div", { class: "bar" },
    h("button", { type: "button", id: `act-${node}`, onclick: () => act(node, undo),
      "aria-label": undo ? `Take the draining of ${node} back` : `Drain ${node}` }, undo ? "Take back" : "Drain"),
    !undo && last && h("span", { class: "bad" }, "the last one: requests would have to wait"));
}

// ---- which function is where -------------------------------------------------------------------------------

/** [{ name, home, queued, at: { node: [level, count, megabytes] } }], by name. */
function placed(now, wanted) {
  const rows = new Map();
  const row = (name) => {
    if (!rows.has(name)) rows.set(name, { name, home: "", queued: 0, pinned: false, at: {} });
    return rows.get(name);
  };
  for (const one of now.functions) Object.assign(row(one.function), { home: one.home ?? "", queued: one.queued, pinned: one.pinned });
  for (const container of now.containers) {
    for (const one of container.instances) {
      const at = row(one.function).at;
      const [level, count, size] = at[container.node] ?? [LEVELS.length - 1, 0, 0];
      at[container.node] = [Math.min(level, levelOf(one)), count + 1, size + one.bytes_mb];
    }
  }
  return [...rows.values()].filter((one) => one.name.toLowerCase().includes(wanted)).sort((a, b) => (a.name < b.name ? -1 : 1));
}

function levelOf(instance) {
  if (instance.state === "running") return 0;
  if (instance.state === "ready") return instance.served ? 1 : 2;
  return instance.state === "imported" ? 3 : 4;
}

function where(nodes, rows) {
  if (!rows.length) return h("p", { class: "quiet" }, "Nothing is in memory: the first request of a function has it loaded on its home.");
  const head = [h("th", { scope: "col" }, "Function"),
    ...nodes.map((one) => h("th", { scope: "col" }, one.node, stateOf(one) !== "up" && h("span", { class: "quiet" }, ` (${stateOf(one)})`)))];
  const body = rows.slice(0, MOST_ROWS).map((row) => h("tr", { "data-function": row.name },
    h("th", { scope: "row" }, toFunction(...row.name.split("/")), row.pinned && h("span", { class: "tag" }, "pinned"),
      row.queued > 0 && h("span", { class: "tag" }, `${row.queued} waiting`)),
    nodes.map((one) => h("td", null, cell(row, one.node)))));
  const caption = "by function and node, what a request would find there now; home is where the next container would be made first";
  return h("div", { class: "scroll grid", tabindex: 0, role: "region", "aria-label": "What is loaded where" },
    h("table", null, h("caption", null, caption), h("thead", null, h("tr", null, head)), h("tbody", null, body)),
    rows.length > MOST_ROWS && h("p", { class: "quiet" }, `and ${rows.length - MOST_ROWS} more: narrow it down above`));
}

function cell(row, node) {
  const there = row.at[node];
  const home = row.home === node && h("span", { class: "tag" }, "home");
  if (!there) return [home || h("span", { class: "quiet" }, none)];
  const [level, count, size] = there;
  const [kind, word] = LEVELS[level];
  return [h("span", { class: `swatch ${kind}` }), `${count > 1 ? `${count} × ` : ""}${word} `, h("span", { class: "quiet" }, mb(size)), " ", home];
}
