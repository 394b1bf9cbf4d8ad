// The alphas of a run: chips, one of which the slider moves.

const MOST_ALPHAS = 6; // a browser opens six connections to a server, page.css has six lines
const $ = (id) => document.getElementById(id);

let chip = null;
const chips = () => [...$("chips").children];
const field = (item) => item.querySelector("input");
/** The values that stand there, each once. */
export const alphas = () => {
  const values = chips().map((item) => field(item).valueAsNumber);
  return [...new Set(values.filter(Number.isFinite))].sort((a, b) => a - b);
};

export function addChip(value) {
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

/** No alpha above `most`. */
export function bound(most) {
  $("slider").max = most;
  for (const item of chips()) field(item).max = most;
}
