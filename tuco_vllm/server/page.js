// The page at /tuco: one prompt, several alphas, their completions side by side. Starts here.

import { ApiError, complete, keeper, models } from "./page_api.js";
import { draw } from "./page_chart.js";
import { Column, score, visible } from "./page_column.js";

const MOST_ALPHAS = 6; // a browser opens six connections to a server, page.css has six lines
const $ = (id) => document.getElementById(id);

// ---- The alphas: chips, one of which the slider moves.

let chip = null;
const chips = () => [...$("chips").children];
const field = (item) => item.querySelector("input");
const alphas = () => {
  const values = chips().map((item) => field(item).valueAsNumber);
  return [...new Set(values.filter(Number.isFinite))].sort((a, b) => a - b);
};

function addChip(value) {
  const item = $("chip").content.cloneNode(true).firstElementChild;
  field(item).max = $("slider").max;
  field(item).value = value;
  field(item).addEventListener("focus", () => choose(item));
  field(item).addEventListener("input", () => choose(item));
  item.querySelector("button").addEventListener("click", () => {
    const next = item.nextElementSibling ?? item.previousElementSibling;
    item.remove();
    choose(next);
    field(next).focus();
  });
  $("chips").append(item);
  choose(item);
}

/** The slider moves `item` from here on. */
function choose(item) {
  chip = item;
  for (const other of chips()) {
    other.classList.toggle("current", other === item);
    const remove = other.querySelector("button");
    remove.setAttribute("aria-label", `Remove α = ${field(other).value}`);
    remove.disabled = chips().length === 1;
  }
  $("slider").value = field(item).value;
  $("slider").labels[0].textContent = `Move α = ${field(item).value}`;
  $("add").disabled = chips().length >= MOST_ALPHAS;
}

$("slider").addEventListener("input", () => {
  field(chip).value = $("slider").value;
  choose(chip);
});

/** A new alpha goes into the widest gap, and the slider moves it from there. */
$("add").addEventListener("click", () => {
  const marks = [0, ...alphas(), Number($("slider").max)];
  const gaps = marks.slice(1).map((mark, i) => mark - marks[i]);
  const widest = gaps.indexOf(Math.max(...gaps));
  addChip(Math.round(((marks[widest] + marks[widest + 1]) / 2) * 20) / 20);
  field(chip).focus();
});

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
  $("slider").max = pair?.max_alpha ?? 2;
  for (const item of chips()) field(item).max = $("slider").max;
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
  if (known.length || (await findModels())) await completeAll(mine.signal);
  if (running !== mine) return;
  running = null;
  if (document.activeElement === $("stop")) $("run").focus();
  $("stop").disabled = true;
}

async function completeAll(signal) {
  const chat = document.querySelector("[name=mode]:checked").value === "chat";
  const request = {
    model: $("model").value,
    chat,
    prompt: $("prompt").value,
    max_tokens: $("max-tokens").valueAsNumber,
    temperature: $("temperature").valueAsNumber,
    ...($("seed").value && { seed: $("seed").valueAsNumber }),
  };
  range = null;
  const mine = (columns = alphas().map((alpha, i) => new Column(alpha, i, { select, point, leave, scored })));
  $("columns").replaceChildren(...columns.map((column) => column.element));
  $("legend").hidden = true;
  $("results").hidden = false;
  select(null, null);
  tell(`Writing ${columns.length} completions …`);
  const failures = (await Promise.all(mine.map((column) => fill(column, request, signal)))).filter(Boolean);
  if (columns !== mine) return;
  const done = signal.aborted ? "Stopped." : `Done: ${mine.length - failures.length} of ${mine.length}.`;
  tell(failures.length ? `${done} ${failures[0]}` : done, failures.length > 0);
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

/** Colours span the run's scores, to the tenth; all tokens follow, for the style sheet does the mixing. */
function scored(value) {
  const low = Math.floor(Math.min(value, range?.[0] ?? value) * 10 + 1e-9) / 10;
  const high = Math.ceil(Math.max(value, range?.[1] ?? value) * 10 - 1e-9) / 10;
  if (range?.[0] === low && range[1] === high) return;
  range = [low, Math.max(high, low + 0.1)];
  $("results").style.setProperty("--low", range[0]);
  $("results").style.setProperty("--high", range[1]);
  $("legend").querySelector(".low").textContent = range[0].toFixed(1);
  $("legend").querySelector(".high").textContent = range[1].toFixed(1);
  $("legend").setAttribute("aria-label", `Colours: TuCo from ${range[0].toFixed(1)} to ${range[1].toFixed(1)}`);
  $("legend").hidden = false;
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
  if (event.target.name === "mode") {
    $("prompt-label").textContent = event.target.value === "chat" ? "Message to answer" : "Text to continue";
  }
});
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
