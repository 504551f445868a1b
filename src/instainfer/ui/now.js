// What there is this second: figures of the last minute, the node, containers and what is in them, what changed.

import { clock, facts, h, link, mb, ms, none, number, percent, seconds, svg, table, toFunction, when } from "./dom.js";
import { hello } from "./hello.js";
import { CHANGES, recent } from "./recent.js";

export const title = () => "Now";

const REMEMBERED = 120; // events: two minutes of each figure
const seen = { at: "", values: new Map() };

export function show(main, parts, app) {
  const tiles = h("div", { class: "tiles" });
  const first = h("div");
  const memory = h("h2");
  const starts = h("div");
  const node = h("div");
  const containers = h("div", { class: "cards" });
  const zygotes = h("div");
  const changes = h("div");
  main.append(
    first, tiles,
    h("h2", null, "How the requests of the last minute began"), starts,
    memory, node,
    h("h2", null, "Containers"), legend(), containers,
    h("h2", null, "Library zygotes"), zygotes,
    h("h2", null, "What changed in the last minute"), changes,
  );
  return {
    update({ event }) {
      const { now } = event;
      if (event.anew && seen.at.split(".")[0] !== event.id.split(".")[0]) seen.values.clear();
      remember(event);
      when(tiles, [figures(now), event.id], () => figures(now).map((one) => tile(...one)));
      when(memory, now.nodes?.length > 1, () =>
        now.nodes?.length > 1 ? ["Memory of the nodes", " ", h("small", null, link(["cluster"], "each of them"))] : ["Memory of the node"]);
      when(first, now.deployed === 0, () => [now.deployed === 0 && hello(app)]);
      when(starts, now.rates.starts, () => began(now.rates.starts));
      when(node, [now.node, now.zygotes, now.policy], () => theNode(now));
      when(containers, [now.containers], () =>
        now.containers.length
          ? now.containers.map(box)
          : [h("p", { class: "quiet" }, "None: a request has one created, and it is kept for a while after.")],
      );
      when(zygotes, [now.zygotes], () => theZygotes(now.zygotes));
      const young = recent(now.wall).filter((mark) => !mark.node || mark.container || mark.instance || now.nodes?.length > 1);
      when(changes, young, () => changed(young));
    },
  };
}

/** [name, value shown, key of what is remembered of it] */
function figures(now) {
  const { rates } = now;
  const idle = now.containers.reduce((sum, one) => sum + one.idle_mb, 0);
  return [
    ["Requests/s", number(rates.per_s), "per_s"],
    ["Hit rate", percent(rates.hit_fraction), "hit"],
    ["p50", ms(rates.p50_ms), "p50"],
    ["p99", ms(rates.p99_ms), "p99"],
    ["Failed", number(rates.failed), "failed"],
    ["Waiting", number(now.queued), "queued"],
    ["Pre-loaded, unused", mb(now.preloaded_mb), "ahead"],
    ["Idle memory", mb(idle), "idle"],
    now.wasted_gb_s !== undefined && ["Wasted", `${number(now.wasted_gb_s, 2)} GB·s`, "wasted"],
  ].filter(Boolean);
}

function remember({ id, now }) {
  if (seen.at === id) return;
  seen.at = id;
  const { rates } = now;
  const values = {
    per_s: rates.per_s, hit: rates.hit_fraction, p50: rates.p50_ms, p99: rates.p99_ms, failed: rates.failed,
    queued: now.queued, ahead: now.preloaded_mb, idle: now.containers.reduce((sum, one) => sum + one.idle_mb, 0),
    wasted: now.wasted_gb_s,
  };
  for (const [name, value] of Object.entries(values)) {
    const row = seen.values.get(name) ?? [];
    row.push(value ?? null);
    if (row.length > REMEMBERED) row.shift();
    seen.values.set(name, row);
  }
}

function tile(name, figure, key) {
  return h("div", { class: "tile", "data-figure": key }, h("p", { class: "name" }, name), h("p", { class: key === "failed" && figure !== "0" ? "figure bad" : "figure" }, figure),
    spark(seen.values.get(key) ?? []));
}

function spark(values) {
  const known = values.filter((one) => one !== null);
  const top = Math.max(...known, 1e-9);
  const points = values
    .map((one, place) => (one === null ? null : `${place + REMEMBERED - values.length},${20 - (one / top) * 18}`))
    .filter(Boolean);
  return svg("svg", { viewBox: `0 0 ${REMEMBERED} 22`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("polyline", { class: "spark", points: points.join(" ") }));
}

function legend() {
  const entry = (kind, text) => h("li", null, h("span", { class: `swatch ${kind}` }), text);
  return h("ul", { class: "legend" }, entry("own", "the owner's"), entry("guest", "a guest's that was used"),
    entry("ahead", "pre-loaded, not used yet"), entry("", "idle"));
}

function theNode(now) {
  const { node } = now;
  const zygote = now.zygotes.reduce((sum, one) => sum + one.bytes_mb, 0);
  const about = [
    ["Sandbox", node.sandbox],
    now.policy && ["Mode", now.policy.mode],
    now.policy && ["Predictor", now.policy.predictor],
    now.policy && ["Keep-alive", now.policy.keep_alive],
    ["Functions", number(now.deployed)],
    ["Version", `${now.version}, up ${seconds(now.uptime_s)}`],
    node.missing.length > 0 && ["Not isolated", node.missing.join(", ")],
  ];
  if (node.memory_mb === undefined) return [facts(about)];
  const share = (value) => `${(100 * value) / node.memory_mb}%`;
  const said = `${mb(node.committed_mb)} of ${mb(node.memory_mb)} are promised`;
  const containers = Math.max(0, node.committed_mb - zygote);
  return [
    h("div", { class: "meter", role: "img", "aria-label": said },
      containers > 0 && h("span", { class: "promised", style: { width: share(containers) } }),
      zygote > 0 && h("span", { class: "zygote", style: { width: share(zygote) } })),
    h("p", { class: "quiet" }, `${said}: ${mb(containers)} to containers, ${mb(zygote)} to library zygotes.`),
    facts(about),
  ];
}

function kind(container, instance) {
  if (!instance.served && instance.state !== "running") return "ahead";
  return `${container.namespace}/${instance.function}` === container.owner || instance.function === container.owner ? "own" : "guest";
}

function box(container) {
  const share = (value) => `${(100 * value) / container.limit_mb}%`;
  const shares = container.instances.map((one) =>
    h("span", { class: kind(container, one), style: { width: share(one.bytes_mb) } }));
  const kept = container.state === "idle" ? "kept until its memory is needed" : "in use";
  const ends = container.pinned ? "pinned" : container.expires_in_s === null ? kept : `ends in ${seconds(container.expires_in_s)}`;
  const said = `${mb(container.used_mb)} of ${mb(container.limit_mb)} used, ${mb(container.idle_mb)} idle`;
  return h("article", { class: "card", "data-container": container.id, "aria-label": `container ${container.id}` },
    h("header", null, h("h3", null, `${container.id} · ${container.owner}`), h("span", { class: "tag" }, container.state)),
    h("div", { class: "meter", role: "img", "aria-label": said }, shares),
    h("p", { class: "quiet" }, `${said}; ${ends}`),
    h("ul", { class: "plain" }, container.instances.map((one) => {
      const [namespace, name] = one.function.includes("/") ? one.function.split("/") : [container.namespace, one.function];
      return h("li", null, toFunction(namespace, name), h("span", { class: "tag" }, one.frozen ? "frozen" : one.state),
        h("span", { class: "quiet" }, `${one.level}, ${mb(one.bytes_mb)}, served ${one.served}`));
    })));
}

function theZygotes(zygotes) {
  if (!zygotes.length) return [h("p", { class: "quiet" }, "None: no libraries are worth the memory now, or none can be forked.")];
  return [table("processes that have imported libraries, to be forked", ["Zygote", "State", ">Memory", ">Age", "~For"],
    zygotes.map((one) => [one.id, one.state, mb(one.bytes_mb), seconds(one.age_s), one.functions.join(", ")]))];
}

function changed(marks) {
  return [table("what the platform did, latest first", ["Time", "What", "Function", "Container", ">Took", "~Why"],
    marks.map((one) => [clock(one.wall), CHANGES[one.what] ?? one.what, one.function ? toFunction(one.namespace, one.function) : none,
      one.container || one.instance || one.node, ms(one.ms), one.why]), "nothing")];
}

/** Start kind -> [class of its swatch, what it means], the best first. */
const STARTS = {
  warm: ["inference", "an instance was there that had served before"],
  preloaded: ["ahead", "loaded ahead of the request, and not used before"],
  attached: ["guest", "its pre-load was under way"],
  cloned: ["warmup", "forked from a loaded instance"],
  imported: ["import", "libraries were there, the model was not"],
  forked: ["zygote", "forked from a process that has the libraries"],
  cold: ["container", "nothing was there"],
  none: ["queue", "it never got an instance"],
};

function began(starts) {
  const all = Object.values(starts).reduce((sum, one) => sum + one, 0);
  if (!all) return [h("p", { class: "quiet" }, "There were none.")];
  const there = Object.entries(STARTS).filter(([name]) => starts[name]);
  const said = there.map(([name]) => `${name} ${starts[name]}`).join(", ");
  return [
    h("div", { class: "meter", role: "img", "aria-label": said }, there.map(([name, [kind]]) =>
      h("span", { class: kind, style: { width: `${(100 * starts[name]) / all}%` } }))),
    h("ul", { class: "legend", id: "starts" }, there.map(([name, [kind, meaning]]) =>
      h("li", null, h("span", { class: `swatch ${kind}` }), h("strong", null, `${name} ${number(starts[name])}`), ` ${meaning}`))),
  ];
}
