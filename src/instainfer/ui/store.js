// What the page knows of the past: the latest invocations and marks, in columns of a fixed size, each once.

export const PHASES = ["queue", "container", "extract", "import", "load", "device", "warmup", "inference"];
export const STARTS = ["", "warm", "preloaded", "attached", "cloned", "imported", "forked", "cold"];
export const MOST = 100_000;
export const MOST_MARKS = 5_000;

export class Store {
  constructor(most = MOST) {
    this.most = most;
    this.wall = new Float64Array(most); // seconds since 1970, when accepted
    this.took = new Float32Array(most); // milliseconds, from end to end
    this.phases = new Float32Array(most * PHASES.length);
    this.start = new Uint8Array(most);
    this.failed = new Uint8Array(most);
    this.of = new Uint32Array(most); // number of its function
    this.clear();
  }

  clear() {
    this.ids = [];
    this.slots = new Map(); // id -> slot
    this.names = []; // "namespace/function" by number
    this.numbers = new Map();
    this.rows = []; // by function: its slots, in the order in which they came
    this.marks = [];
    this.leftOut = 0; // warm invocations that were too many to be told
    this.next = 0;
    this.changes = (this.changes ?? 0) + 1;
  }

  get size() {
    return this.ids.length;
  }

  number(name) {
    let found = this.numbers.get(name);
    if (found === undefined) {
      found = this.names.length;
      this.numbers.set(name, found);
      this.names.push(name);
      this.rows.push([]);
    }
    return found;
  }

  /** Rows as the API gives them; one that is there already is left as it is. */
  add(invocations) {
    for (const one of invocations) {
      if (this.slots.has(one.id)) continue;
      const slot = this.next;
      this.next = (slot + 1) % this.most;
      if (slot < this.ids.length) this.#drop(slot);
      const number = this.number(`${one.namespace}/${one.function}`);
      this.ids[slot] = one.id;
      this.slots.set(one.id, slot);
      this.wall[slot] = one.wall;
      this.took[slot] = one.e2e_ms;
      PHASES.forEach((phase, place) => {
        this.phases[slot * PHASES.length + place] = one.phases[`${phase}_ms`] ?? 0;
      });
      this.start[slot] = Math.max(STARTS.indexOf(one.start), 0);
      this.failed[slot] = one.status === "ok" ? 0 : 1;
      this.of[slot] = number;
      this.rows[number].push(slot);
    }
    this.changes++;
  }

  addMarks(marks) {
    if (!marks.length) return;
    this.marks.push(...marks);
    if (this.marks.length > MOST_MARKS) this.marks.splice(0, this.marks.length - MOST_MARKS);
    this.changes++;
  }

  #drop(slot) {
    this.slots.delete(this.ids[slot]);
    const row = this.rows[this.of[slot]];
    const place = row.indexOf(slot); // the oldest are first: it is found at once
    if (place >= 0) row.splice(place, 1);
  }

  row(slot) {
    const phases = {};
    PHASES.forEach((phase, place) => {
      phases[phase] = this.phases[slot * PHASES.length + place];
    });
    return {
      id: this.ids[slot],
      name: this.names[this.of[slot]],
      wall: this.wall[slot],
      took: this.took[slot],
      start: STARTS[this.start[slot]],
      failed: this.failed[slot] === 1,
      phases,
    };
  }
}

export const store = new Store();
