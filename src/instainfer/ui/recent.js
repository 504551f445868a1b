// What the platform did, as people say it, and what of it is young.

import { store } from "./store.js";

export const CHANGES = {
  preload: "pre-load", loaded: "pre-loaded", offload: "off-load", load: "load", raise: "raise", failed: "load failed",
  create: "create container", destroy: "destroy container", zygote: "start zygote", end_zygote: "end zygote",
  node_joined: "node joined", node_silent: "node not heard of", node_heard: "node heard of again", node_lost: "node lost",
  node_draining: "node drained", node_reopened: "node taken back",
};

/** Of the last minute, the latest first. */
export function recent(wall, most = 30) {
  const found = [];
  for (let at = store.marks.length - 1; at >= 0 && found.length < most && store.marks[at].wall > wall - 60; at--) found.push(store.marks[at]);
  return found;
}
