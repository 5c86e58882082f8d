// Asking the server: one request, and its answer event by event.

/** What went wrong, in words for the person at the screen. */
export class Problem extends Error {
  constructor(message, code = "") {
    super(message);
    this.code = code;
  }
}

/** Blocks of a stream of server-sent events, as `{name, data}` with the data parsed. */
export async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return; // what no blank line ends is no event
      const blocks = (held + value).split(/\r\n\r\n|\n\n|\r\r/);
      held = blocks.pop();
      for (const block of blocks) {
        let name = "message";
        const data = [];
        for (const line of block.split(/\r\n|\n|\r/)) {
          const [, field, rest] = line.match(/^([^:]*):? ?(.*)$/s);
          if (field === "event") name = rest;
          if (field === "data") data.push(rest);
        }
        if (data.length) yield { name, data: JSON.parse(data.join("\n")) };
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // already closed, or broken: the reader of the events was told
  }
}

/**
 * Ask, and get the answer's events: `text`, `object`, at the end `done`.
 * @param {object} body the request, as `POST /v1/predict` takes it.
 * @param {string} key bearer token; empty for none.
 * @param {AbortSignal} signal ends the request.
 */
export async function* ask(body, key, signal) {
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const request = { method: "POST", headers, body: JSON.stringify({ ...body, stream: true }), signal };
  let response;
  try {
    response = await fetch("v1/predict", request);
  } catch (error) {
    throw signal.aborted ? error : new Problem("The server cannot be reached. Is it running?");
  }
  if (!response.ok) throw await refusalOf(response);
  let ended = false;
  try {
    for await (const { name, data } of eventsOf(response.body)) {
      if (name === "error") throw new Problem(data.error.message, data.error.code);
      yield { name, data };
      ended = name === "done";
    }
  } catch (error) {
    if (error instanceof Problem || signal.aborted) throw error;
    throw new Problem("The connection broke before the answer was whole. Ask again.");
  }
  if (!ended) throw new Problem("The answer ended before it was whole. Ask again.");
}

async function refusalOf(response) {
  const body = await response.json().catch(() => ({})); // a proxy on the way may answer in HTML
  const said = body.error?.message ?? `The server answered ${response.status} ${response.statusText}.`.replace(" .", ".");
  if (response.status === 401) return new Problem("This server answers only with a key. Enter yours and ask again.", "key");
  const wait = Number(response.headers.get("retry-after"));
  const busy = response.status === 429 || response.status === 503;
  return new Problem(busy && wait ? `${said} Best in ${wait} s.` : said, body.error?.code);
}
