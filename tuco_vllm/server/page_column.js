// One alpha's column: the prompt's score, and the completion's tokens, each shaded by its score and focusable.

const END = {
  stop: "ended by itself",
  length: "cut at max tokens",
  stopped: "stopped",
};

export function note(alpha) {
  if (alpha === 0) return "pre-trained layers";
  if (alpha === 1) return "the fine-tuned model";
  return alpha < 1 ? "less fine-tuning" : "more fine-tuning";
}

export const score = (value) => (value === undefined ? "–" : value.toFixed(3));

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

/** A token's text with what cannot be seen made visible. */
export const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");

export class Column {
  /**
   * `style` numbers the line in page.css, `name` is the column's heading, `words` stand beside it. `on` has what
   * the page does: select(column, position) with position null for the prompt, point(token element, words) and
   * leave() for the tip, and scored(value).
   */
  constructor({ alpha, style, name = `α = ${alpha}`, words = note(alpha) }, on) {
    Object.assign(this, { alpha, style, name, on, tokens: [], spans: [], prompt: undefined, finish: undefined });
    this.element = document.getElementById("column").content.cloneNode(true).firstElementChild;
    this.element.setAttribute("aria-label", name);
    const find = (selector) => this.element.querySelector(selector);
    find(".swatch").classList.add(`line-${style}`);
    find(".alpha").textContent = name;
    find("small").textContent = words;
    this.button = find(".score");
    this.button.addEventListener("click", () => on.select(this, null));
    this.box = find(".tokens");
    this.box.setAttribute("aria-label", `Tokens: ${name}`);
    this.box.addEventListener("keydown", (event) => this.#move(event));
    this.error = find(".error");
    this.foot = find(".foot");
    this.element.classList.add("writing");
  }

  /** Takes what one chunk brings. */
  add({ prompt, tokens, finish }) {
    if (prompt !== undefined) this.#setPrompt(prompt);
    const follows = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 8;
    for (const token of tokens) this.#addToken(token);
    if (follows) this.box.scrollTop = this.box.scrollHeight;
    this.finish = finish ?? this.finish;
    this.#count();
  }

  /** No more will come; `error` says in words why, where something went wrong. */
  end(error) {
    this.element.classList.remove("writing");
    this.error.textContent = error ?? "";
    this.error.hidden = !error;
    this.#count();
  }

  /** β after each layer, of the token at `position` (null: of the prompt, which is the first token's). */
  betas(position) {
    return this.tokens[position ?? 0]?.betas;
  }

  /** Marks what the curves show: `position` (null: the prompt), if it is this column where it was chosen. */
  mark(position, here) {
    this.button.setAttribute("aria-pressed", String(position === null));
    this.box.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
    if (here && position !== null) this.spans[position].setAttribute("aria-selected", "true");
  }

  #setPrompt(value) {
    this.prompt = value;
    this.button.querySelector("b").textContent = score(value);
    this.button.setAttribute("aria-label", `Prompt: TuCo ${score(value)}, ${this.name}`);
    this.button.querySelector(".bar").style.setProperty("--share", value);
  }

  #addToken(token) {
    const position = this.tokens.push(token) - 1;
    const span = document.createElement("span");
    // The space before a word is not shaded: it would be left over where a line wraps.
    const [, space, ink] = token.text.match(/^( ?)(.+)$/s) ?? [null, "", token.text];
    const shade = document.createElement("i");
    shade.textContent = ink;
    span.append(space, shade);
    span.setAttribute("role", "option");
    span.setAttribute("aria-selected", "false");
    span.tabIndex = position ? -1 : 0; // one tab stop a column; arrows do the rest
    let words = `${visible(token.text || token.name || "no text")} · TuCo ${score(token.tuco)}`;
    let tip = `${words} · token ${position + 1}`;
    if (token.ft !== undefined && token.pt !== undefined) {
      const delta = token.ft - token.pt;
      span.style.setProperty("--delta", delta);
      words += ` · Δ log p ${signed(delta)}`;
      tip += ` · Δ log p ${signed(delta)}: ${signed(token.ft)} fine-tuned, ${signed(token.pt)} pre-trained`;
    }
    span.setAttribute("aria-label", words);
    if (token.tuco !== undefined) {
      span.style.setProperty("--tuco", token.tuco);
      this.on.scored(token.tuco);
    }
    // What has no ink gets a sign, from the style sheet: the text stays the model's.
    span.classList.toggle("silent", !token.text);
    span.classList.toggle("newline", /^\s*\n\s*$/.test(token.text));
    span.addEventListener("pointerenter", () => this.on.point(shade, tip));
    span.addEventListener("pointerleave", () => this.on.leave());
    span.addEventListener("blur", () => this.on.leave());
    span.addEventListener("focus", () => {
      this.box.querySelector("[tabindex='0']")?.setAttribute("tabindex", "-1");
      span.tabIndex = 0;
      this.on.select(this, position);
      this.on.point(shade, tip);
    });
    // A span with tabindex takes the focus of a click, but not that of every touch.
    span.addEventListener("click", () => span.focus());
    this.spans.push(span);
    this.box.append(span);
  }

  #move(event) {
    const at = this.spans.indexOf(document.activeElement);
    const to = {
      ArrowRight: () => at + 1,
      ArrowLeft: () => at - 1,
      ArrowDown: () => this.#lineFrom(at, 1),
      ArrowUp: () => this.#lineFrom(at, -1),
      Home: () => 0,
      End: () => this.spans.length - 1,
    }[event.key]?.();
    if (event.key === "Escape") this.on.select(this, null);
    if (to === undefined || at < 0) return;
    event.preventDefault();
    this.spans[to]?.focus();
  }

  /** The token nearest below (`step` 1) or above (-1) the one at `at`, as lines are wrapped now. */
  #lineFrom(at, step) {
    const place = (i) => this.spans[i].lastChild.getClientRects()[0];
    const here = place(at);
    let best;
    let line; // the next line's top, once it is reached
    for (let i = at + step; i >= 0 && i < this.spans.length; i += step) {
      const there = place(i);
      if (Math.abs(there.top - here.top) < 4) continue;
      line ??= there.top;
      if (Math.abs(there.top - line) >= 4) break;
      const off = Math.abs(there.left - here.left);
      if (best === undefined || off < best.off) best = { i, off };
    }
    return best?.i;
  }

  #count() {
    const scored = this.tokens.map((token) => token.tuco).filter((value) => value !== undefined);
    const mean = scored.reduce((sum, value) => sum + value, 0) / scored.length;
    const parts = [`${this.tokens.length} token${this.tokens.length === 1 ? "" : "s"}`];
    if (scored.length) parts.push(`mean TuCo ${score(mean)}`);
    const both = this.tokens.filter(({ ft, pt }) => ft !== undefined && pt !== undefined);
    if (both.length) {
      const [ft, pt] = ["ft", "pt"].map((side) => both.reduce((sum, token) => sum + token[side], 0));
      parts.push(`log p ${signed(ft)} fine-tuned, ${signed(pt)} pre-trained, Δ ${signed(ft - pt)}`);
    }
    if (this.finish) parts.push(END[this.finish] ?? this.finish);
    this.foot.textContent = parts.join(" · ");
  }
}
