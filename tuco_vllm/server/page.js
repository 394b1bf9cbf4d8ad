// The page at /tuco: completions of a prompt side by side, or a response that is given. Starts here.

import { addChip, alphas, bound } from "./page_alphas.js";
import { ApiError, complete, keeper, models, scored as scoreOf } from "./page_api.js";
import { draw, raise } from "./page_chart.js";
import { Column, score, visible } from "./page_column.js";

const $ = (id) => document.getElementById(id);

// ---- The model, and the key that the server may ask for.

let known = [];

async function findModels() {
  try {
    known = await models();
  } catch (error) {
    tell(inWords(error), true);
    return false;
  }
  $("model").replaceChildren(...known.map(({ id }) => new Option(id, id)));
  useModel();
  tell(known.length ? "" : "The server has no model.", !known.length);
  return known.length > 0;
}

function useModel() {
  const pair = known.find(({ id }) => id === $("model").value)?.tuco;
  $("model").title = pair ? `${pair.ft}, fine-tuned from ${pair.pt}` : "";
  bound(pair?.max_alpha ?? 2);
}

keeper.askKey = (why) =>
  new Promise((resolve) => {
    const dialog = $("key");
    $("key-why").textContent = why;
    $("key-value").value = "";
    dialog.returnValue = "";
    $("key-cancel").onclick = () => dialog.close("");
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      dialog.close("given");
    };
    dialog.onclose = () => resolve(dialog.returnValue && $("key-value").value.trim());
    dialog.showModal();
  });

// ---- A run.

let running = null;
let columns = [];
let shown = { column: null, position: null }; // whose curves are drawn; position null: the prompt's
let range = null; // [lowest, highest] score of the run: what the colours span

async function run() {
  running?.abort();
  const mine = (running = new AbortController());
  $("stop").disabled = false;
  tell("Asking the server …");
  if (known.length || (await findModels())) await (isGiven() ? scoreGiven : completeAll)(mine.signal);
  if (running !== mine) return;
  running = null;
  if (document.activeElement === $("stop")) $("run").focus();
  $("stop").disabled = true;
}

const chosen = (name) => document.querySelector(`[name=${name}]:checked`).value;
const isGiven = () => chosen("task") === "score";
const asked = () => ({ model: $("model").value, chat: chosen("mode") === "chat", prompt: $("prompt").value });

/** Empty columns for what is about to come; on a small screen they are brought into view. */
function begin(made) {
  range = null;
  columns = made;
  $("columns").replaceChildren(...columns.map((column) => column.element));
  $("legend").hidden = true;
  $("results").hidden = false;
  select(null, null);
  if ($("results").getBoundingClientRect().top > innerHeight * 0.7) $("results").scrollIntoView({ behavior: "smooth" });
  return columns;
}

const on = { select, point, leave, scored };

async function completeAll(signal) {
  const request = {
    ...asked(),
    max_tokens: $("max-tokens").valueAsNumber,
    temperature: $("temperature").valueAsNumber,
    ...($("seed").value && { seed: $("seed").valueAsNumber }),
  };
  offerDelta(false);
  const mine = begin(alphas().map((alpha, style) => new Column({ alpha, style }, on)));
  tell(`Writing ${columns.length} completions …`);
  const failures = (await Promise.all(mine.map((column) => fill(column, request, signal)))).filter(Boolean);
  if (columns !== mine) return;
  const done = signal.aborted ? "Stopped." : `Done: ${mine.length - failures.length} of ${mine.length}.`;
  tell(failures.length ? `${done} ${failures[0]}` : done, failures.length > 0);
}

/** The scores of a response that somebody else has written. */
async function scoreGiven(signal) {
  const words = "as it was given";
  const [column] = begin([new Column({ alpha: 1, style: 2, name: "Response", words }, on)]);
  tell("Scoring …");
  let wrong;
  try {
    const { prompt, tokens, why } = await scoreOf({ ...asked(), response: $("response").value }, signal);
    offerDelta(tokens.some((token) => token.pt !== undefined));
    column.add({ prompt, tokens });
    tell(why ? `Done, without Δ log p: ${why}` : "Done.", Boolean(why));
    drawCurves();
  } catch (error) {
    wrong = signal.aborted ? undefined : inWords(error);
    tell(wrong ?? "Stopped.", Boolean(wrong));
  }
  column.end(wrong);
}

/** Streams one completion into its column; resolves to what went wrong, in words, or to nothing. */
async function fill(column, request, signal) {
  let wrong;
  try {
    for await (const part of complete({ ...request, alpha: column.alpha }, signal)) {
      column.add(part);
      const { position } = shown;
      if (part.tokens.length && column.tokens.length - part.tokens.length <= (position ?? 0)) drawCurves();
    }
  } catch (error) {
    if (signal.aborted) column.finish = "stopped";
    else wrong = inWords(error);
  }
  column.end(wrong);
  return wrong;
}

function inWords(error) {
  if (!(error instanceof ApiError)) console.error(error);
  return error.message || String(error);
}

function tell(words, wrong = false) {
  $("status").textContent = words;
  $("status").classList.toggle("wrong", wrong);
}

// ---- Colours, curves and the tip.

/** A run's scores, to the tenth; all tokens follow, for the style sheet does the mixing. */
function scored(value) {
  const low = Math.floor(Math.min(value, range?.[0] ?? value) * 10 + 1e-9) / 10;
  const high = Math.ceil(Math.max(value, range?.[1] ?? value) * 10 - 1e-9) / 10;
  if (range?.[0] === low && range[1] === high) return;
  range = [low, Math.max(high, low + 0.1)];
  useColours();
}

/** What colours span: the run's scores, all that TuCo can be, or a fixed span of Δ log p. */
function useColours() {
  const choice = $("colours").value;
  const [low, high] = { span: range ?? [0, 1], whole: [0, 1], delta: [-5, 5] }[choice];
  $("results").classList.toggle("by-delta", choice === "delta");
  $("results").style.setProperty("--low", low);
  $("results").style.setProperty("--high", high);
  const digits = choice === "delta" ? 0 : 1;
  $("legend").querySelector(".low").textContent = low.toFixed(digits).replace("-", "−");
  $("legend").querySelector(".high").textContent = high.toFixed(digits);
  $("legend").hidden = !range;
}

function offerDelta(there) {
  const option = $("colours").querySelector("[value=delta]");
  option.hidden = option.disabled = !there;
  if (!there && $("colours").value === "delta") $("colours").value = "span";
  useColours();
}

function select(column, position) {
  shown = { column, position };
  for (const one of columns) one.mark(position, one === column);
  drawCurves();
}

function drawCurves() {
  const { column, position } = shown;
  const prompts = position === null;
  $("chart-of").textContent = prompts ? "the prompt" : `token ${position + 1} of each completion`;
  $("chart-prompt").hidden = prompts;
  const lines = columns
    .map((one) => {
      const { alpha, style, tokens } = one;
      return { alpha, style, betas: one.betas(position), token: tokens[position], current: one === column };
    })
    .filter((line) => line.betas?.length);
  draw($("chart"), lines);
  $("chart-key").replaceChildren(...lines.map(keyOf));
}

/** What a line stands for: its look, its alpha, the token it is of, and the score it ends with. */
function keyOf({ alpha, style, betas, token, current }) {
  const item = document.createElement("li");
  const part = (tag, text) => item.append(Object.assign(document.createElement(tag), { textContent: text }));
  item.append($("column").content.querySelector(".swatch").cloneNode(true));
  item.firstChild.classList.add(`line-${style}`);
  part("span", `α = ${alpha}`);
  if (token) part("code", visible(token.text || token.name));
  part("b", score(betas.at(-1)));
  item.classList.toggle("current", current);
  item.addEventListener("pointerenter", () => raise($("chart"), style));
  item.addEventListener("pointerleave", () => raise($("chart"), null));
  return item;
}

let pointed = null; // the token that the tip stands at

function point(token, words) {
  pointed = token;
  $("tip").textContent = words;
  $("tip").hidden = false;
  placeTip();
}

function placeTip() {
  if (!pointed) return;
  const tip = $("tip");
  const { left, top, bottom } = pointed.getClientRects()[0];
  const above = top - tip.offsetHeight - 6;
  tip.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${above > 4 ? above : bottom + 6}px`;
}

function leave() {
  pointed = null;
  $("tip").hidden = true;
}

// ---- What a person does.

$("controls").addEventListener("submit", (event) => {
  event.preventDefault(); // only after the browser found every field in order
  run();
});
$("controls").addEventListener("change", (event) => {
  const given = isGiven();
  const continued = given ? "Text before the response" : "Text to continue";
  $("prompt-label").textContent = chosen("mode") === "chat" ? "Message to answer" : continued;
  document.querySelector(".given").hidden = !given;
  document.querySelector(".settings").hidden = given;
  $("response").required = given;
  for (const input of document.querySelectorAll(".settings input")) input.disabled = given;
  if (event.target.name === "task") $("results-title").textContent = given ? "The response" : "Completions";
});
$("colours").addEventListener("change", useColours);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("key").open) $("controls").requestSubmit($("run"));
  if (event.key === "Escape") leave();
});
document.addEventListener("scroll", placeTip, { capture: true, passive: true });
$("stop").addEventListener("click", () => running?.abort());
$("model").addEventListener("change", useModel);
$("chart-prompt").addEventListener("click", () => {
  select(null, null);
  columns[0]?.button.focus();
});
new ResizeObserver(() => {
  if (columns.length) drawCurves();
  placeTip();
}).observe($("chart"));

[0, 0.5, 1, 1.5].forEach(addChip);
findModels();
