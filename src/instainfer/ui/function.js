// One function: what it costs, what is in memory of it, when it is called and expected, and what can be done with it.

import { call, get, getResponse, post } from "./api.js";
import { clock, date, facts, h, mb, ms, none, number, seconds, svg, table, toWhy, when } from "./dom.js";
import { troubled } from "./trouble.js";

export const title = ([namespace, name]) => `${namespace}/${name}`;

const AGAIN_MS = 5_000; // for what the feed does not tell
const MOST_CALLS = 200;
const LISTED = 15;
const MOST_SHOWN = 100_000; // characters of an answer or a sample

export function show(main, [namespace, name], app) {
  const path = ["functions", namespace, name];
  const parts = Object.fromEntries(
    ["about", "acts", "costs", "forecast", "history", "versions", "logs"].map((one) => [one, h("div")]));
  const trial = tryIt(namespace, name);
  const status = (id) => h("p", { role: "status", class: "quiet", id, tabindex: -1 });
  const done = status("done"); // what came of the buttons
  const said = status("said"); // and of those of versions
  main.append(
    parts.about, parts.acts, done,
    h("h2", null, "What it costs"), parts.costs,
    h("h2", null, "Arrivals and forecast"), parts.forecast,
    h("h2", null, "Try it"), trial.element,
    h("h2", null, "Latest calls"), parts.history,
    h("h2", null, "Versions"), said, parts.versions,
    h("h2", null, "What it printed"), parts.logs,
  );
  const abort = new AbortController();
  let shown = null;
  let live = null;
  let calls = []; // the latest first
  const ask = () =>
    troubled(parts.about, async () => {
      const query = { namespace, function: name, limit: MOST_CALLS };
      const [one, forecast, { activations }, { logs }] = await Promise.all([
        get(path, {}, abort.signal), get([...path, "forecast"], {}, abort.signal),
        get(["activations"], query, abort.signal), get([...path, "logs"], { limit: 200 }, abort.signal),
      ]);
      if (!shown) trial.fill(one);
      shown = one;
      about();
      when(parts.costs, [one.profile, one.production], () => costs(one));
      calls = activations;
      when(parts.forecast, forecast, () => outlook(forecast, activations));
      when(parts.history, calls, () => history(calls));
      when(parts.versions, [one.versions.length, one.version, app.mayAct(namespace)], () => versions(one.versions, app.mayAct(namespace) && rollback));
      when(parts.logs, logs, () =>
        logs.length ? [h("pre", { tabindex: 0, class: "logs" }, logs.map((line) => line.text).join(""))] : [h("p", { class: "quiet" }, "nothing")]);
    });

  async function rollback(version) {
    said.focus(); // the button goes
    said.textContent = "…";
    await troubled(said, async () => {
      said.textContent = (await post([...path, "rollback"], { version })).message;
    });
    ask();
  }

  function about() {
    const state = live?.state ?? shown.state;
    const given = {
      state, pinned: live?.pinned ?? shown.pinned, queued: live?.queued ?? 0, memory: shown.memory_mb, version: shown.version,
    };
    when(parts.about, [given, shown], () => [facts([
      ["Now", state + (given.pinned ? ", pinned" : "")],
      ["Waiting", number(given.queued)],
      ["Version", String(shown.version)],
      ["Memory limit", mb(shown.memory_mb)],
      ["Time limit", seconds(shown.timeout_s)],
      ["At once", String(shown.concurrency)],
      ["Written as", `${shown.style}, ${shown.entry}`],
      ["Python", shown.python || none],
      ["Isolation", shown.isolation],
      ["Network", shown.network ? "yes" : "no"],
      ["Requirements", shown.requirements.join(", ") || "none"],
      ["Digest", shown.digest.slice(0, 19)],
    ])]);
    when(parts.acts, [app.mayAct(namespace), given.pinned], () => (app.mayAct(namespace) ? acts(path, given.pinned, done, ask) : []));
  }

  ask();
  const again = setInterval(ask, AGAIN_MS);
  return {
    update({ event }) {
      const found = event.now.functions.find((one) => one.function === `${namespace}/${name}`);
      live = found ?? { state: "cold", pinned: false, queued: 0 };
      if (!shown) return;
      about();
      const known = new Set(calls.map((one) => one.id));
      const ended = event.invocations.filter((one) => one.namespace === namespace && one.function === name && !known.has(one.id));
      calls = [...ended.reverse(), ...calls].slice(0, MOST_CALLS);
      when(parts.history, calls, () => history(calls));
    },
    close() {
      clearInterval(again);
      abort.abort();
    },
  };
}

function acts(path, pinned, said, after) {
  const act = (verb, body) => async () => {
    said.textContent = "…";
    const place = h("div");
    if (await troubled(place, async () => { said.textContent = (await post([...path, verb], body?.())).message; })) after();
    else said.textContent = place.textContent;
  };
  const button = (text, verb, focus) => h("button", { type: "button", id: `act-${verb}`, "data-focus": focus, onclick: act(verb) }, text);
  const within = h("input", { type: "number", min: 0, max: 2_592_000, step: "any", value: 30, size: 6, id: "hint-in" });
  const hint = h("button", { type: "button", id: "act-hint", onclick: act("hint", () => ({ in_s: Number(within.value) })) }, "Say so");
  return [
    h("div", { class: "bar" }, button("Pre-load", "preload"), button("Off-load", "offload"),
      pinned ? button("Unpin", "unpin", "pinned") : button("Pin", "pin", "pinned"),
      h("label", { class: "inline" }, "A call is expected in", within, "s"), hint),
  ];
}

// ---- what it costs -----------------------------------------------------------------------------------------

const COSTS = [
  ["container", "container_ms", ms], ["import", "import_ms", ms], ["load", "load_ms", ms], ["load without a snapshot", "plain_load_ms", ms],
  ["warm-up", "warmup_ms", ms], ["first call", "first_ms", ms], ["warm call", "warm_ms", ms], ["fork", "fork_ms", ms], ["clone", "clone_ms", ms],
  ["libraries", "libraries_mb", mb], ["imported", "imported_mb", mb], ["loaded", "loaded_mb", mb], ["forked", "forked_mb", mb],
  ["cloned", "cloned_mb", mb], ["snapshot", "snapshot_mb", mb],
];
const PATHS = { zygote: "Library zygote", snapshot: "Model snapshot", clone: "Clones", intercept: "Interception" };

function costs({ profile, production }) {
  if (!profile) return [h("p", { class: "quiet" }, "it was not measured")];
  const rows = COSTS.filter(([, key]) => profile[key] || production?.[key]).map(([name, key, say]) =>
    [name, say(profile[key]), production ? say(production[key]) : none]);
  const paths = Object.entries(profile.paths).map(([name, { used, reason }]) => [PATHS[name] ?? name, used ? "in use" : "off", reason || none]);
  return [
    table("as measured at deployment, and as runs have shown since", ["What", ">At deployment", ">Since"], rows, "nothing", false),
    h("h3", null, "Ways to be faster"),
    table("and if one is off, the reason", ["Way", "State", "~Reason"], paths),
  ];
}

// ---- arrivals and forecast ---------------------------------------------------------------------------------

const WIDE = 640;
const HIGH = 176;
const LEFT = 60;
const BASE = 150;

function outlook(told, activations) {
  const [soon, likely, late] = told.next_s;
  const when = (value) => (value === null ? "not within a day" : value <= 1 ? "within a second" : `in ${seconds(value)}`);
  const young = activations.filter((one) => one.wall > told.wall - 60).length;
  return [
    facts([
      ["Predictor", told.predictor],
      ["Called in the last minute", young < activations.length || young < MOST_CALLS ? number(young) : `${young} at least`],
      ["Expected per second, as placement reckons", number(told.rate)],
      ["Since the last arrival", told.last_s === null ? "never called" : seconds(told.last_s)],
      ["Next one, even odds", when(likely)],
      ["10% and 90%", `${when(soon)}, ${when(late)}`],
      ["Period", told.period_s === null ? "none found" : seconds(told.period_s)],
    ]),
    chart(told, activations),
    h("p", { class: "quiet" }, "Left: arrivals. Right: arrivals per second expected. Band: the next one is there with 10 to 90%."),
  ];
}

/** Arrivals to the left of now, and to the right of it the rate that is expected if nothing comes before. */
function chart({ hazard, next_s, wall }, activations) {
  const far = hazard.at(-1)[0];
  const top = Math.max(...hazard.map(([, rate]) => rate), 1e-9);
  const x = (at) => LEFT + ((at + far) / (2 * far)) * (WIDE - LEFT - 8);
  const y = (rate) => BASE - (rate / top) * (BASE - 14);
  const [soon, likely, late] = next_s;
  const within = (at) => Math.min(at ?? far, far);
  const arrivals = activations.map((one) => one.wall - wall).filter((at) => at > -far && at <= 0);
  const said = `${arrivals.length} arrivals in the last ${seconds(far)}; the expected rate over the next ${seconds(far)} is at most ${number(top)} a second`;
  const text = (at, down, words, anchor = "middle") => svg("text", { x: at, y: down, "text-anchor": anchor }, words);
  return svg("svg", { class: "chart", viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": said },
    soon !== null && svg("rect", { class: "band", x: x(within(soon)), y: 10, width: Math.max(x(within(late)) - x(within(soon)), 1), height: BASE - 10 }),
    svg("line", { class: "axis", x1: LEFT, x2: WIDE - 8, y1: BASE, y2: BASE }),
    svg("line", { class: "axis", x1: x(0), x2: x(0), y1: 6, y2: BASE + 5 }),
    svg("polyline", { class: "curve", points: hazard.map(([at, rate]) => `${x(at)},${y(rate)}`).join(" ") }),
    likely !== null && likely <= far && svg("line", { class: "middle", x1: x(likely), x2: x(likely), y1: 10, y2: BASE }),
    arrivals.map((at) => svg("line", { class: "tick", x1: x(at), x2: x(at), y1: BASE - 22, y2: BASE })),
    text(0, 10, `${number(top, 2)} a second`, "start"), text(LEFT - 6, BASE + 4, "0", "end"),
    text(LEFT, BASE + 18, `${seconds(far)} ago`, "start"), text(x(0), BASE + 18, "now"), text(WIDE - 8, BASE + 18, `in ${seconds(far)}`, "end"));
}

// ---- the rest ----------------------------------------------------------------------------------------------

const history = (activations) => [
  table("the latest first", ["Time", "Start", ">Took", "State", "Why"],
    activations.slice(0, LISTED).map((one) => [clock(one.wall), one.start || "none", ms(one.e2e_ms),
      one.status === "ok" ? "ok" : h("span", { class: "bad" }, one.status), toWhy(one.id)]), "never called")];

/** `back(version)` has one serve, if the key may. */
const versions = (all, back) => [
  table("the latest first; going back is at once, and nothing is lost by it", [">Version", "Deployed", "Digest", "Serves"],
    all.toReversed().map((one) => [String(one.version), date(one.created), one.digest.slice(0, 19),
      one.current ? "yes" : back ? h("button", { type: "button", id: `version-${one.version}`, onclick: () => back(one.version),
        "aria-label": `Let version ${one.version} serve` }, "Let it serve") : "no"]))];

function tryIt(namespace, name) {
  const type = h("input", { value: "application/json", size: 24 });
  const body = h("textarea", { spellcheck: "false" }, "{}");
  const file = h("input", { type: "file" });
  const send = h("button", null, "Call");
  const answer = h("div", { "aria-live": "polite" });
  let bytes = null; // a sample that is no text
  const note = h("p", { class: "quiet" });
  const form = h("form", null, h("label", null, "Content type", type), h("label", null, "Body", body),
    h("label", null, "or a file", file), note, send, answer);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    send.disabled = true;
    answer.replaceChildren(h("p", { class: "quiet" }, "asking"));
    try {
      const response = await call(namespace, name, file.files[0] ?? bytes ?? body.value, type.value);
      const text = await response.text();
      const id = response.headers.get("x-instainfer-activation");
      answer.replaceChildren(
        h("p", null, `${response.status}, ${response.headers.get("x-instainfer-start") || "never began"}: ${response.headers.get("server-timing") ?? ""} `, id && toWhy(id, "why")),
        h("pre", { tabindex: 0, id: "answer" }, text.slice(0, MOST_SHOWN)));
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      answer.replaceChildren(h("p", { class: "bad", role: "alert" }, "the server does not answer"));
    } finally {
      send.disabled = false;
    }
  });
  file.addEventListener("change", () => {
    if (file.files[0]?.type) type.value = file.files[0].type;
  });
  body.addEventListener("input", () => { bytes = null; note.textContent = ""; });
  return {
    element: form,
    async fill({ sample }) {
      if (!sample) return;
      await troubled(note, async () => {
        const response = await getResponse(["functions", namespace, name, "sample"]);
        const data = new Uint8Array(await response.arrayBuffer());
        type.value = response.headers.get("x-instainfer-sample-type") || "application/octet-stream";
        try {
          if (data.length > MOST_SHOWN) throw new TypeError("too long to show");
          body.value = new TextDecoder("utf-8", { fatal: true }).decode(data);
          note.textContent = `the sample that it was deployed with: ${sample}`;
        } catch {
          bytes = data;
          body.value = "";
          note.textContent = `the sample that it was deployed with, ${sample}, is sent as it is: ${data.length} bytes; write a body to send that instead`;
        }
      });
    },
  };
}
