// The server's side: the models it has, one completion as a stream of tokens, and the key that guards both.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Set by the page: asks a person for the API key, given why; resolves to it, or to null. */
export const keeper = { askKey: async () => null };

const KEY = "tuco-api-key";
let key = sessionStorage.getItem(KEY);
let asking = null;

/** Completions run side by side: whichever is refused first asks, the others wait for the same answer. */
function askKey() {
  const why = key ? "The server refused this key." : "This server asks for an API key.";
  asking ??= keeper.askKey(why).finally(() => (asking = null));
  return asking;
}

/** fetch with the key; what the server refuses, and its silence, become an ApiError in words. */
async function request(path, options = {}) {
  const used = key;
  const headers = { "Content-Type": "application/json", ...(used && { Authorization: `Bearer ${used}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (response.ok) return response;
  if (response.status !== 401) throw new ApiError(await reason(response), response.status);
  if (used === key) {
    const given = await askKey();
    if (!given) throw new ApiError("This server answers only with its API key.", 401);
    key = given;
    sessionStorage.setItem(KEY, key);
  }
  return request(path, options);
}

async function reason(response) {
  const body = await response.json().catch(() => null);
  const said = body?.error?.message ?? body?.message ?? body?.detail ?? body?.error;
  return typeof said === "string" ? said : `The server answered ${response.status} ${response.statusText}.`;
}

/** [{id, tuco: {pt, ft, max_alpha}}, ...] */
export async function models() {
  return (await (await request("v1/models")).json()).data ?? [];
}

/**
 * One completion, as it is written: yields {prompt, tokens, finish}, each of them where a chunk brings it.
 *
 * A token is {text, name, tuco, betas}: what it adds to the text, its own string (an end token adds nothing), its
 * score, and fine-tuning's share after each layer.
 */
export async function* complete({ chat, prompt, ...settings }, signal) {
  const body = { ...settings, stream: true, tuco: "layers" };
  // Asked for the tokens' own strings: several can come in one chunk.
  Object.assign(body, chat ? { messages: [{ role: "user", content: prompt }], logprobs: true } : { prompt, logprobs: 0 });
  const path = chat ? "v1/chat/completions" : "v1/completions";
  const response = await request(path, { method: "POST", body: JSON.stringify(body), signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message ?? String(chunk.error));
    const choice = chunk.choices?.[0];
    if (choice) yield { prompt: choice.tuco?.prompt ?? undefined, tokens: tokens(choice), finish: choice.finish_reason };
  }
  throw new ApiError("The server ended the stream early.");
}

/**
 * A response that is given: {prompt, tokens, why}, tokens as above, with `ft` and `pt`, the log-probabilities of both
 * models; `why` says why there are none of those.
 */
export async function scored({ model, chat, prompt, response }, signal) {
  const input = chat ? [{ role: "user", content: prompt }] : prompt;
  const ask = async (relative_reward) => {
    const body = JSON.stringify({ model, input, response, relative_reward });
    return (await (await request("v1/tuco/score", { method: "POST", body, signal })).json()).data[0];
  };
  let why;
  const answer = await ask(true).catch((error) => {
    if (error.status !== 400) throw error;
    why = error.message; // the prompt's or the reward's: without the latter it is clear which
    return ask(false);
  });
  const { tokens: tucos, token_ids, text_offsets, logps_ft, logps_pt } = answer.response;
  const letters = [...response]; // offsets count code points
  const tokens = token_ids.map((id, i) => ({
    text: text_offsets ? letters.slice(text_offsets[i], text_offsets[i + 1]).join("") : ` #${id}`,
    name: `#${id}`,
    tuco: tucos[i] ?? undefined,
    ft: logps_ft?.[i] ?? undefined,
    pt: logps_pt?.[i] ?? undefined,
  }));
  const layers = { cum_ptc_norms: [answer.layers?.cum_ptc_norms], cum_ftc_norms: [answer.layers?.cum_ftc_norms] };
  if (tokens.length) tokens[0].betas = betas(layers, 0);
  return { prompt: answer.tuco ?? undefined, tokens, why };
}

/** The data of server-sent events, which network packets cut anywhere. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The connection to the server was lost.");
    }
    if (read.done) return;
    const lines = (rest + read.value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

function tokens(choice) {
  const text = choice.text ?? (choice.delta?.content || choice.delta?.reasoning || "");
  const scores = choice.tuco?.tokens ?? [];
  if (!text && !scores.length) return [];
  const names = choice.logprobs?.tokens ?? choice.logprobs?.content?.map((one) => one.token) ?? [];
  const pieces = names.length === scores.length && names.length > 1 ? cut(text, names) : [text];
  // Text that cannot be cut is shown as one token, with the score of its last.
  const skip = scores.length - pieces.length;
  return pieces.map((piece, i) => ({
    text: piece,
    name: names[i + skip] ?? piece,
    tuco: scores[i + skip] ?? undefined, // null where a model overflowed
    betas: betas(choice.tuco?.layers, i + skip),
  }));
}

/** `text` cut where its tokens begin. A token that is not in it (an end token, half a character) adds "". */
function cut(text, names) {
  let from = 0;
  const pieces = names.map((name) => {
    const at = text.indexOf(name, from);
    if (at < 0) return "";
    const piece = text.slice(from, at + name.length);
    from = at + name.length;
    return piece;
  });
  pieces[pieces.length - 1] += text.slice(from);
  return pieces;
}

/** β after each layer: ‖F̄‖₁ / (‖P̄‖₁ + ‖F̄‖₁), 0 where both are 0; up to the layer where a model overflowed, if one did. */
function betas(layers, token) {
  const ptc = layers?.cum_ptc_norms?.[token];
  const ftc = layers?.cum_ftc_norms?.[token];
  const finite = ftc?.includes(null) ? ftc.slice(0, ftc.indexOf(null)) : ftc;
  return finite?.map((norm, layer) => (norm ? norm / (ptc[layer] + norm) : 0));
}
