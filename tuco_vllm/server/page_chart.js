// The curves: fine-tuning's share after each layer, one line for each alpha, drawn at the size it is shown.

const EDGE = { top: 14, right: 70, bottom: 40, left: 52 };
const HEIGHT = 280;
const LABEL = 15; // what a label at a line's end needs, in px

function add(parent, tag, attributes = {}, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

/** The axis ends at the tenth above the highest point, never lower than 0.2: noise should not look like signal. */
const ceiling = (lines) => Math.max(0.2, Math.ceil(Math.max(0, ...lines.flatMap((line) => line.betas)) * 10) / 10);

/** Draws `lines`, [{alpha, style, betas, current}]; `style` is the line's number in page.css. */
export function draw(svg, lines) {
  svg.replaceChildren();
  const width = svg.clientWidth;
  const layers = Math.max(0, ...lines.map((line) => line.betas.length));
  if (!width || !layers) return;
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const top = ceiling(lines);
  const x = (layer) => EDGE.left + ((layer - 1) / Math.max(1, layers - 1)) * (width - EDGE.left - EDGE.right);
  const y = (beta) => HEIGHT - EDGE.bottom - (beta / top) * (HEIGHT - EDGE.top - EDGE.bottom);

  drawAxes(svg, x, y, layers, top, width);
  for (const { alpha, style, betas, current } of lines) {
    const group = add(svg, "g", { class: `line line-${style}${current ? " current" : ""}` });
    group.dataset.style = style;
    add(group, "path", { d: "M" + betas.map((beta, i) => `${x(i + 1)} ${y(beta)}`).join("L") });
    betas.forEach((beta, i) => {
      const dot = add(group, "circle", { cx: x(i + 1), cy: y(beta), r: layers > 48 ? 1.5 : 2.5 });
      add(dot, "title", {}, `α = ${alpha}, after layer ${i + 1}: ${beta.toFixed(3)}`);
    });
  }
  drawEnds(svg, lines, x, y);
}

function drawAxes(svg, x, y, layers, top, width) {
  const step = top > 0.6 ? 0.2 : top > 0.2 ? 0.1 : 0.05;
  for (let i = 0; i * step <= top + 1e-9; i++) {
    add(svg, "path", { class: "grid", d: `M${x(1)} ${y(i * step)}H${x(layers)}` });
    const digits = step < 0.1 ? 2 : 1;
    add(svg, "text", { x: EDGE.left - 8, y: y(i * step) + 4, "text-anchor": "end" }, (i * step).toFixed(digits));
  }
  // About one label in 50 px, at 1, 2, 5, 10, ... layers apart, and the last layer's.
  const apart = [1, 2, 5, 10, 20, 50, 100].find((n) => (width / 50) * n >= layers) ?? layers;
  const marks = [1];
  for (let layer = apart; layer <= layers - apart / 2; layer += apart) if (layer > 1) marks.push(layer);
  for (const layer of new Set([...marks, layers])) {
    add(svg, "text", { x: x(layer), y: HEIGHT - EDGE.bottom + 18, "text-anchor": "middle" }, layer);
  }
  const middle = (EDGE.top + HEIGHT - EDGE.bottom) / 2;
  add(svg, "text", { class: "axis", x: (x(1) + x(layers)) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "after layer");
  add(svg, "text", { class: "axis", transform: `translate(13 ${middle}) rotate(-90)`, "text-anchor": "middle" }, "share β");
}

/** Brings one line before the others, which fade; null: all are as they were. */
export function raise(svg, style) {
  const one = style === null ? null : svg.querySelector(`.line[data-style="${style}"]`);
  if (one) one.parentNode.insertBefore(one, svg.querySelector(".lead"));
  for (const line of svg.querySelectorAll(".line")) line.classList.toggle("faded", one !== null && line !== one);
}

/** Each line's name at its end, pushed apart where lines end close to each other. */
function drawEnds(svg, lines, x, y) {
  const ends = lines.map((line) => ({ ...line, at: y(line.betas.at(-1)) })).sort((a, b) => a.at - b.at);
  ends.forEach((end, i) => (end.at = Math.max(end.at, i ? ends[i - 1].at + LABEL : EDGE.top)));
  ends.reverse().forEach((end, i) => (end.at = Math.min(end.at, i ? ends[i - 1].at - LABEL : y(0))));
  for (const { alpha, style, betas, at } of ends) {
    const [from, to] = [x(betas.length) + 3, x(betas.length) + 12];
    // Where several lines end as one, each name still leads to its own.
    add(svg, "path", { class: `lead line-${style}`, d: `M${from} ${y(betas.at(-1))}L${to} ${at}` });
    add(svg, "text", { class: `end line-${style}`, x: to + 3, y: at + 4 }, `α ${alpha}`);
  }
}
