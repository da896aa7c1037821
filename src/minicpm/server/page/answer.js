// The server's side of the page: which model there is, and one answer piece by piece.

import { word } from "./words.js";

/** What a user reads when an answer does not come; `status` is HTTP's, 0 where there was none. */
export class AnswerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The name of the model that answers. */
export async function modelName(key) {
  const response = await ask("v1/models", { headers: headers(key) });
  return String((await response.json()).data[0].id);
}

/** Yields the events of a streamed answer; leaving the loop, or the signal, ends the server's work. */
export async function* answer(request, key, signal) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const response = await ask("v1/chat/completions", { method: "POST", headers: headers(key), body, signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new AnswerError(String(event.error.message));
    yield event;
  }
  throw new AnswerError(word("brokeOff"));
}

function headers(key) {
  const common = { "Content-Type": "application/json" };
  // A header cannot hold every character; a key with others is a wrong one, which the server shall say.
  return key ? { ...common, Authorization: `Bearer ${key.replace(/[^\x21-\x7e]/g, "?")}` } : common;
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new AnswerError(word("unreachable"));
  }
  if (!response.ok) throw new AnswerError(await explanation(response), response.status);
  return response;
}

async function explanation(response) {
  try {
    return String((await response.json()).error.message);
  } catch {
    return word("noSense", response.status);
  }
}

async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the stream may have failed already
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new AnswerError(word("brokeOff"));
  }
}
