/** Talks to the server: JSON, streams of server-sent events, and errors as sentences. */

/** An answer of the server that is not the one hoped for; its message is a sentence for people. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The absolute address of one of the server's routes, also behind a proxy that adds a prefix. */
export function address(route) {
  return new URL(route, document.baseURI).href;
}

/** @returns {Promise<any>} the route's JSON */
export async function getJson(route, key) {
  const response = await request(route, { headers: headers(key) });
  return response.json();
}

/**
 * The JSON objects of a streamed completion, as they arrive.
 * @param {AbortSignal} signal ends the stream, and the request on the server
 */
export async function* stream(route, body, key, signal) {
  const options = {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  };
  const response = await request(route, options);
  let complete = false;
  for await (const data of events(response.body)) {
    complete ||= data === "[DONE]";
    if (complete) continue; // up to the end of the body, so that the connection serves the next request
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(sentence(chunk.error.message), chunk.error.code);
    yield chunk;
  }
  if (!complete) throw new ApiError("The connection ended before the answer did.");
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function request(route, options) {
  let response;
  try {
    response = await fetch(address(route), { ...options, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(`The server at ${location.host} cannot be reached. Is it still running?`);
  }
  if (!response.ok) throw await refusal(response, Boolean(options.headers.Authorization));
  return response;
}

async function refusal(response, hadKey) {
  const { status } = response;
  const body = await response.json().catch(() => null);
  const message = sentence(body?.error?.message ?? "");
  const seconds = response.headers.get("Retry-After");
  const again = seconds ? ` Try again in ${seconds} ${seconds === "1" ? "second" : "seconds"}.` : "";
  if (status === 401) {
    const text = hadKey ? "The server does not accept this API key." : "This server asks for an API key. Enter yours under Request.";
    return new ApiError(text, status);
  }
  if (status === 429) return new ApiError(`The server has too much to do. ${message}${again}`.trim(), status);
  if (status === 503) return new ApiError(`The server takes no requests at the moment. ${message}${again}`.trim(), status);
  if (message) return new ApiError(message + again, status);
  return new ApiError(`The server answered with the HTTP status ${status} ${response.statusText}`.trim() + "." + again, status);
}

/** A message with a capital letter and a full stop, unless it starts with a field's name. */
function sentence(message) {
  const text = message.trim();
  if (!text) return "";
  const start = /^[a-z][\w.]*:/.test(text) ? text : text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(start) ? start : `${start}.`;
}

/** The data of server-sent events; an event ends with an empty line. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection to the server broke.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
