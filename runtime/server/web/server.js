// The server's protocol: its models, and an answer as it comes.

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** The models' names and states. */
export async function models(key) {
  const response = await ask("v1/models", {headers: headers(key)});
  return (await response.json()).data;
}

/**
 * The chunks of a chat completion; ends with the stream, throws ServerError.
 * What came before a chunk whose `edgelm` says `restart` is taken back.
 * A privacy level can only be stricter than the server's; consent is the id of a question that a person said yes to.
 */
export async function* chat(body, key, signal, {privacy = "", consent = ""} = {}) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: {
      "Content-Type": "application/json",
      "x-edgelm-restarts": "yes",
      ...(privacy && {"x-edgelm-privacy": privacy}),
      ...(consent && {"x-edgelm-consent": consent}),
      ...headers(key),
    },
    body: JSON.stringify({...body, stream: true, stream_options: {include_usage: true}}),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, response.status);
    yield chunk;
  }
  throw new ServerError("The connection ended before the answer did.", 0);
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, {cache: "no-store", ...options});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it running?", 0);
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new ServerError(told?.error?.message ?? `The server answered with status ${response.status}.`, response.status);
}

function headers(key) {
  return key ? {Authorization: `Bearer ${key}`} : {};
}

/** The data of server-sent events; comments and names are left out. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    buffer += value;
    const parts = buffer.split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
      if (data.length) yield data.join("\n");
    }
  }
}
