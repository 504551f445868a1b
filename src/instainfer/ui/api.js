// The server's API with the key of whoever looks, and its live feed.

const API = "/instainfer/v1";
const KEY = "instainfer-key";
const SILENT_MS = 10_000; // a feed that says nothing for so long is taken for broken: it speaks once a second
const PAUSES_MS = [250, 500, 1000, 2000, 5000];

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

export class Problem extends Error {
  constructor(status, said, hint) {
    super(said);
    this.status = status;
    this.hint = hint ?? "";
  }
}

function headers(given) {
  const mine = key.get();
  return { ...given, ...(mine && { authorization: `Bearer ${mine}` }) };
}

async function problem(response) {
  const text = await response.text();
  try {
    const { detail, hint } = JSON.parse(text);
    return new Problem(response.status, detail ?? text, hint);
  } catch {
    return new Problem(response.status, text || response.statusText);
  }
}

/** The response, if it is a good one; throws Problem. */
export async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", redirect: "error", ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "the server does not answer", "it may be starting again");
  }
  if (!response.ok) throw await problem(response);
  return response;
}

const path = (parts) => API + "/" + parts.map((one) => encodeURIComponent(one)).join("/");

export async function get(parts, query = {}, signal) {
  const given = new URLSearchParams(query).toString();
  return (await request(path(parts) + (given && `?${given}`), { signal })).json();
}

export async function post(parts, body = {}, query = {}) {
  const given = new URLSearchParams(query).toString();
  const options = { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } };
  return (await request(path(parts) + (given && `?${given}`), options)).json();
}

export const getResponse = (parts) => request(path(parts)); // of something that is not JSON

/** Call a function with any body; the response, whatever its status. */
export const call = (namespace, name, body, type) =>
  fetch(`/f/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`, {
    method: "POST",
    body,
    headers: headers({ "content-type": type }),
  });

/** Server-sent events out of a body: each a `data` of JSON. */
async function* events(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    rest += value;
    for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
      const lines = rest.slice(0, end).split("\n");
      rest = rest.slice(end + 2);
      const data = lines.find((line) => line.startsWith("data:"));
      if (data) yield JSON.parse(data.slice(5));
    }
  }
}

/** Follow the feed for good: `told(event)` of each, `state(word)` of the connection; `locked()` asks for a key. */
export async function follow(told, state, locked) {
  let since = "";
  for (let failures = 0; ; failures++) {
    const abort = new AbortController();
    let watch = 0;
    const heard = () => {
      clearTimeout(watch);
      watch = setTimeout(() => abort.abort(), SILENT_MS);
    };
    try {
      heard();
      const response = await request(`${API}/live${since && `?since=${encodeURIComponent(since)}`}`, { signal: abort.signal });
      for await (const event of events(response.body, heard)) {
        failures = 0;
        state("live");
        since = event.id;
        try {
          told(event);
        } catch (error) {
          reportError(error); // a fault of a page is none of the feed's
        }
      }
    } catch (error) {
      if (error.status === 401 || error.status === 403) {
        state("locked");
        await locked(error);
        failures = -1;
        continue;
      }
      if (error instanceof SyntaxError || error instanceof Problem || error.name === "AbortError" || error instanceof TypeError) {
        since = error instanceof SyntaxError ? "" : since;
      } else throw error;
    } finally {
      clearTimeout(watch);
      abort.abort();
    }
    state("away");
    await new Promise((done) => setTimeout(done, PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)]));
  }
}
