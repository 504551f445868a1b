// One row a function, each invocation a bar of its phases, what was loaded ahead as marks. Drawn on one canvas of the
// size that is seen, so that thousands of rows and a hundred thousand bars cost no more than those in view.

import { clock, count, h, ms, replace, seconds, table, toFunction, toWhy } from "./dom.js";
import { legend } from "./phases.js";
import { PHASES, STARTS, store } from "./store.js";

export const title = () => "Timeline";

const ROW = 26;
const AXIS = 24;
const SPANS = [10, 30, 60, 300, 900, 3600, 14_400, 86_400];
const LEAST_S = 0.05;
const LISTED = 30;
const MARKS = { preload: "▲", loaded: "◆", offload: "▼", failed: "✕", load: "△", raise: "△" };
const TALLEST = 0.6; // of the window

export function show(main) {
  const view = { end: null, span: 60, filter: "", start: "" }; // end: null follows the present
  const field = (name, element) => h("label", { class: "inline" }, name, element);
  const filter = h("input", { type: "search", placeholder: "namespace/function", size: 16 });
  const kinds = h("select", null, h("option", { value: "" }, "every start"), STARTS.slice(1).map((one) => h("option", null, one)));
  const span = h("select", null, SPANS.map((one) => h("option", { value: one, selected: one === 60 }, seconds(one))));
  const button = (name, act) => h("button", { type: "button", onclick: act }, name);
  const follow = button("Follow", () => change({ end: null }));
  const canvas = h("canvas", { tabindex: 0, role: "img", "aria-label": "" });
  const tall = h("div", { class: "tall" });
  const frame = h("div", { class: "timeline" }, canvas, tall);
  const told = h("p", { class: "quiet", role: "status" });
  const list = h("div");
  main.append(
    h("div", { class: "bar" }, field("Show", filter), field("that began", kinds), field("over", span),
      button("Earlier", () => move(-0.5)), button("Later", () => move(0.5)),
      button("Zoom in", () => zoom(0.5)), button("Zoom out", () => zoom(2)), follow),
    legend(),
    h("ul", { class: "legend" }, h("li", null, "▲ pre-load begins"), h("li", null, "◆ it is there"), h("li", null, "▼ off-load"),
      h("li", null, "✕ load failed, or (in red) the call"), h("li", null, "click: why")),
    frame, told,
    h("h2", null, "In view, the latest first"), list,
  );

  let present = Date.now() / 1000; // the server's clock
  let asOf = performance.now();
  let hits = []; // [x0, x1, row, slot] of what is drawn
  let drawn = 0;

  const now = () => present + (performance.now() - asOf) / 1000;
  const end = () => view.end ?? now();

  function change(values) {
    Object.assign(view, values);
    follow.setAttribute("aria-pressed", view.end === null);
    draw();
  }
  function move(share) {
    const to = end() + share * view.span;
    change({ end: to >= now() ? null : to });
  }
  function zoom(factor, at = view.end === null ? 1 : 0.5) {
    const next = Math.min(Math.max(view.span * factor, LEAST_S), 86_400);
    const fixed = end() - view.span * (1 - at); // stays where it is
    const to = fixed + next * (1 - at);
    change({ span: next, end: at === 1 || to >= now() ? null : to });
  }

  filter.addEventListener("input", () => change({ filter: filter.value.trim().toLowerCase() }));
  kinds.addEventListener("change", () => change({ start: kinds.value }));
  span.addEventListener("change", () => change({ span: Number(span.value) }));
  frame.addEventListener("scroll", () => draw());
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.shiftKey) return;
    event.preventDefault();
    const { width } = canvas.getBoundingClientRect();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, (event.offsetX - label(width)) / (width - label(width)));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const act = { ArrowLeft: () => move(-0.25), ArrowRight: () => move(0.25), "+": () => zoom(0.5), "-": () => zoom(2),
      Home: () => change({ end: null }) }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  let held = null;
  canvas.addEventListener("pointerdown", (event) => { held = { x: event.offsetX, end: end(), moved: false }; });
  canvas.addEventListener("pointermove", (event) => {
    if (held) {
      const { width } = canvas.getBoundingClientRect();
      const by = ((held.x - event.offsetX) / (width - label(width))) * view.span;
      if (held.moved || Math.abs(held.x - event.offsetX) > 4) {
        held.moved = true;
        const to = held.end + by;
        change({ end: to >= now() ? null : to });
      }
      return;
    }
    const slot = under(event);
    canvas.title = slot === null ? "" : say(store.row(slot));
  });
  const release = (event) => {
    const was = held;
    held = null;
    if (event.type !== "pointerup" || was === null || was.moved) return;
    const slot = under(event);
    if (slot !== null) location.hash = `#/why/${encodeURIComponent(store.ids[slot])}`;
  };
  for (const kind of ["pointerup", "pointerleave", "pointercancel"]) canvas.addEventListener(kind, release);

  function under(event) {
    const row = Math.floor((event.offsetY - AXIS) / ROW + frame.scrollTop / ROW);
    let nearest = null;
    let off = 5; // pixels beside a bar are on it: many are thin
    for (const [from, to, at, slot] of hits) {
      if (at !== row) continue;
      const away = Math.max(from - event.offsetX, event.offsetX - to, 0);
      if (away < off) [nearest, off] = [slot, away];
    }
    return nearest;
  }

  // ---- drawing ---------------------------------------------------------------------------------------------

  function chosen() {
    const numbers = [];
    store.names.forEach((name, number) => {
      if (name.toLowerCase().includes(view.filter)) numbers.push(number);
    });
    return numbers.sort((a, b) => (store.names[a] < store.names[b] ? -1 : 1));
  }

  function draw() {
    const numbers = chosen();
    frame.style.height = `${Math.max(Math.min(numbers.length * ROW + AXIS + 4, TALLEST * innerHeight), 6 * ROW)}px`;
    const width = frame.clientWidth;
    const height = frame.clientHeight;
    if (!width) return;
    const scale = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    tall.style.height = `${numbers.length * ROW + AXIS}px`;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const colours = PHASES.map(colour);
    const [ink, quiet, line, paper, bad, card] = ["ink", "quiet", "line", "paper", "bad", "card"].map(colour);
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.fillStyle = paper;
    pen.fillRect(0, 0, width, height);
    const left = label(width);
    const to = end();
    const from = to - view.span;
    const x = (wall) => left + ((wall - from) / view.span) * (width - left);
    axis(pen, from, to, x, { width, height, quiet, line });
    hits = [];
    drawn = 0;
    const first = Math.floor(frame.scrollTop / ROW);
    const last = Math.min(numbers.length, first + Math.ceil((height - AXIS) / ROW) + 1);
    const marks = marksByName(from, to);
    const wanted = view.start === "" ? -1 : STARTS.indexOf(view.start);
    pen.textBaseline = "middle";
    pen.save();
    pen.beginPath();
    pen.rect(0, AXIS, width, height - AXIS);
    pen.clip();
    for (let place = first; place < last; place++) {
      const number = numbers[place];
      const y = AXIS + place * ROW - frame.scrollTop;
      if (place % 2) {
        pen.fillStyle = card;
        pen.fillRect(0, y, width, ROW);
      }
      pen.save();
      pen.beginPath();
      pen.rect(left, y, width - left, ROW);
      pen.clip();
      bars(pen, store.rows[number], place, y + 5, ROW - 10, { from, to, x, colours, wanted, bad });
      pen.font = "12px system-ui, sans-serif";
      pen.textAlign = "center";
      for (const mark of marks.get(store.names[number]) ?? []) {
        pen.fillStyle = mark.what === "failed" ? bad : ink;
        pen.fillText(MARKS[mark.what], x(mark.wall), y + ROW / 2);
      }
      pen.restore();
      pen.fillStyle = ink;
      pen.font = "13px system-ui, sans-serif";
      pen.textAlign = "left";
      pen.fillText(fit(pen, store.names[number], left - 12), 6, y + ROW / 2);
    }
    pen.restore();
    const when = view.end === null ? "now" : clock(to);
    canvas.setAttribute("aria-label",
      `Timeline of ${count(numbers.length, "function")} over ${seconds(view.span)} until ${when}. Arrow keys move, plus and minus zoom; the table below lists what is in view.`);
    const more = store.leftOut ? `, ${store.leftOut.toLocaleString("en")} warm ones of busy seconds only counted` : "";
    told.textContent = `${count(numbers.length, "function")}, ${store.size.toLocaleString("en")} invocations kept${more}; ${seconds(view.span)} until ${when}.`;
  }

  function bars(pen, slots, place, y, height, { from, to, x, colours, wanted, bad }) {
    let covered = -1; // pixels up to here have a bar already
    for (let at = slots.length - 1; at >= 0; at--) {
      const slot = slots[at];
      const begin = store.wall[slot];
      const took = store.took[slot] / 1000;
      if (begin > to || begin + took < from || (wanted >= 0 && store.start[slot] !== wanted)) continue;
      const x0 = x(begin);
      const x1 = Math.max(x(begin + took), x0 + 1.5);
      drawn++;
      if (x1 - x0 < 3 && Math.abs(x0 - covered) < 0.75 && !store.failed[slot]) continue; // nothing of it would be seen
      covered = x0;
      hits.push([x0, x1, place, slot]);
      let edge = x0;
      const all = x1 - x0;
      let sum = 0;
      for (let phase = 0; phase < PHASES.length; phase++) sum += store.phases[slot * PHASES.length + phase];
      for (let phase = 0; phase < PHASES.length; phase++) {
        const part = sum ? (store.phases[slot * PHASES.length + phase] / sum) * all : phase === PHASES.length - 1 ? all : 0;
        if (!part) continue;
        pen.fillStyle = colours[phase];
        pen.fillRect(edge, y, Math.max(part, 0.75), height);
        edge += part;
      }
      if (store.failed[slot]) {
        pen.fillStyle = bad;
        pen.textAlign = "center";
        pen.font = "bold 13px system-ui, sans-serif";
        pen.fillText("✕", (x0 + x1) / 2, y + height / 2);
      }
    }
  }

  function listed() {
    const to = end();
    const from = to - view.span;
    const names = new Set(chosen());
    const found = [];
    const order = [...store.slots.values()];
    for (let at = order.length - 1; at >= 0 && found.length < LISTED; at--) {
      const slot = order[at];
      if (!names.has(store.of[slot]) || store.wall[slot] > to || store.wall[slot] < from) continue;
      if (view.start && STARTS[store.start[slot]] !== view.start) continue;
      found.push(store.row(slot));
    }
    found.sort((a, b) => b.wall - a.wall);
    replace(list, table(`the latest ${LISTED} at most`, ["Time", "Function", "Start", ">Took", "State", "Why"],
      found.map((one) => [clock(one.wall), toFunction(...one.name.split("/")), one.start || "none", ms(one.took),
        one.failed ? h("span", { class: "bad" }, "failed") : "ok", toWhy(one.id)]), "nothing in view"));
  }

  const again = () => { draw(); listed(); };
  const resized = new ResizeObserver(() => draw());
  resized.observe(frame);
  addEventListener("painted", draw);
  change({});
  listed();
  return {
    get drawn() { return drawn; },
    update({ event }) {
      present = event.now.wall;
      asOf = performance.now();
      if (view.end === null) again();
      else draw();
    },
    close() {
      resized.disconnect();
      removeEventListener("painted", draw);
    },
  };
}

const label = (width) => (width < 600 ? 96 : 180);

function say(row) {
  const parts = PHASES.filter((one) => row.phases[one] > 0).map((one) => `${one} ${ms(row.phases[one])}`);
  return `${row.name} · ${row.start || "never began"} · ${ms(row.took)} (${parts.join(", ")})${row.failed ? " · failed" : ""}`;
}

function marksByName(from, to) {
  const found = new Map();
  for (const mark of store.marks) {
    if (!mark.function || mark.wall < from || mark.wall > to || !(mark.what in MARKS)) continue;
    const name = `${mark.namespace}/${mark.function}`;
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(mark);
  }
  return found;
}

const fitted = new Map(); // measuring text is what drawing it costs

function fit(pen, text, width) {
  const key = `${width} ${text}`;
  let found = fitted.get(key);
  if (found === undefined) {
    found = text;
    while (found.length > 1 && pen.measureText(found).width > width) found = `…${found.slice(found.startsWith("…") ? 2 : 1)}`;
    if (fitted.size > 5000) fitted.clear();
    fitted.set(key, found);
  }
  return found;
}

const STEPS = [0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 600, 1800, 3600, 10_800, 21_600];

function axis(pen, from, to, x, { width, height, quiet, line }) {
  const step = STEPS.find((one) => ((to - from) / one) * 80 < width - label(width)) ?? 43_200;
  pen.font = "12px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
    pen.fillStyle = line;
    pen.fillRect(x(at), AXIS - 4, 1, height);
    pen.fillStyle = quiet;
    const text = step < 1 ? `${clock(at)}.${(at % 1).toFixed(2).slice(2)}` : clock(at);
    if (x(at) > label(width) + 24 && x(at) < width - 28) pen.fillText(text, x(at), 10);
  }
}
