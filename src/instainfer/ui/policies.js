// The policy in force beside its shadows: what each made of the same requests.

import { get } from "./api.js";
import { date, facts, h, ms, none, number, percent, prose, replace, seconds, table, when } from "./dom.js";
import { troubled } from "./trouble.js";

export const title = () => "Policies";

export function show(main) {
  const live = h("div");
  const body = h("div");
  main.append(live, h("h2", null, "Beside its shadows"), body);
  const abort = new AbortController();
  let asking = false;
  const ask = async () => {
    if (asking) return;
    asking = true;
    try {
      await troubled(body, async () => {
        const told = await get(["policies"], {}, abort.signal);
        when(body, told, () => rows(told));
      });
    } finally {
      asking = false;
    }
  };
  ask();
  return {
    update({ event: { now } }) {
      ask();
      const { policy, preloads } = now;
      replace(live, facts([
        policy && ["Mode", policy.mode], policy && ["Predictor", policy.predictor], policy && ["Keep-alive", policy.keep_alive],
        preloads && ["Pre-loads that were used", String(preloads.hit)],
        preloads && ["Pre-loads not used", `${preloads.expired} with their container, ${preloads.evicted} for others`],
        preloads && ["Pre-loads that failed", String(preloads.failed)],
        now.wasted_gb_s !== undefined && ["Wasted", `${number(now.wasted_gb_s)} GB·s`],
        ["Pre-loaded, not used yet", `${number(now.preloaded_mb)} MB`],
      ]));
    },
    close: () => abort.abort(),
  };
}

function rows({ since, policies }) {
  if (!policies.length) {
    return [h("p", { class: "quiet" }, prose("There are none. A setting names them, such as `policy.shadow = [\"tyche\", \"none\"]`: then they decide on the same requests and do nothing, and are compared here."))];
  }
  const heads = ["Policy", policies.some((one) => one.reason) ? "~State" : "State", ">Invocations", ">Saved of loading", ">Saved", ">Pre-loaded", ">Warm", ">Cold", ">Mean", ">p99", ">Memory", ">Wasted"];
  const known = policies.some((one) => one.saved_fraction !== null);
  return [
    h("p", { class: "quiet" }, `Of the same requests since ${since ? date(since) : none}. A shadow decides and does nothing.`),
    table("what became of the requests, and what would have", heads, policies.map((one) => [
      `${one.mode} · ${one.predictor} · ${one.keep_alive}${one.shadow ? "" : " (in force)"}`,
      one.reason ? `${one.state}: ${one.reason}` : one.state,
      number(one.invocations), percent(one.saved_fraction), seconds(one.saved_s), percent(one.preloaded_fraction),
      percent(one.warm_fraction), percent(one.cold_fraction), ms(one.e2e_mean_ms), ms(one.e2e_p99_ms),
      one.memory_gb_s === null ? none : `${number(one.memory_gb_s)} GB·s`, one.wasted_gb_s === null ? none : `${number(one.wasted_gb_s)} GB·s`,
    ])),
    known && h("h3", null, "Share of loading latency saved"),
    known && h("ul", { class: "plain bars" }, policies.map((one) => h("li", null,
      h("span", { class: "meter", role: "img", "aria-label": percent(one.saved_fraction), style: { width: "60%" } },
        h("span", { class: one.shadow ? "guest" : "own", style: { width: `${100 * Math.max(one.saved_fraction ?? 0, 0)}%` } })),
      `${one.mode}${one.shadow ? "" : " (in force)"} ${percent(one.saved_fraction)}`))),
  ].filter(Boolean);
}
