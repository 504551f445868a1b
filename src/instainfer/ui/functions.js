// All functions, and what a request would find of each now.

import { get } from "./api.js";
import { count, date, h, mb, ms, replace, table, toFunction } from "./dom.js";
import { hello } from "./hello.js";
import { troubled } from "./trouble.js";

export const title = () => "Functions";

const AGAIN_MS = 10_000; // what is deployed changes seldom; what state it is in comes with the feed

export function show(main, parts, app) {
  const filter = h("input", { type: "search", placeholder: "namespace/function", size: 20 });
  const list = h("div");
  main.append(h("div", { class: "bar" }, h("label", { class: "inline" }, "Show", filter)), list);
  let functions = null;
  let states = null;
  let deployed = null; // how many
  const ask = () =>
    troubled(list, async () => {
      ({ functions } = await get(["functions"]));
      draw();
    });

  function draw() {
    if (!functions) return;
    if (!functions.length) {
      replace(list, hello(app));
      return;
    }
    const wanted = filter.value.trim().toLowerCase();
    const found = functions.filter((one) => `${one.namespace}/${one.name}`.toLowerCase().includes(wanted));
    const heads = ["Function", "Now", ">Version", ">Import", ">Load", ">Warm", ">In memory", ">Limit", "Deployed"];
    replace(list, table(count(found.length, "function"), heads, found.map((one) => {
      const now = states?.get(`${one.namespace}/${one.name}`);
      const costs = one.production ?? one.profile ?? {};
      return [
        toFunction(one.namespace, one.name), (states ? now?.state ?? "cold" : one.state) + (one.pinned ? ", pinned" : ""),
        String(one.version), ms(costs.import_ms || null), ms(costs.load_ms || null), ms(costs.warm_ms || null), mb(costs.loaded_mb), mb(one.memory_mb),
        date(one.created),
      ];
    }), "none of that name"));
  }

  filter.addEventListener("input", draw);
  ask();
  const again = setInterval(ask, AGAIN_MS);
  return {
    update({ event }) {
      const next = new Map(event.now.functions.map((one) => [one.function, one]));
      if (deployed !== event.now.deployed && deployed !== null) ask();
      deployed = event.now.deployed;
      const changed = JSON.stringify([...next]) !== JSON.stringify([...(states ?? [])]);
      states = next;
      if (changed) draw();
    },
    close: () => clearInterval(again),
  };
}
