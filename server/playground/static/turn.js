/** One question and its answer: tokens tinted by expert, one of them chosen by pointer or keyboard. */

import { element, percent } from "./dom.js";
import { colourClass, enumerate, mover, strength } from "./experts.js";
import { explain } from "./inspector.js";
import { Rendered } from "./rendered.js";

export class Turn {
  /** @type {import("./answer.js").Answer} */
  answer;
  /** The weight that is shown at full strength. */
  scale;
  /** The setting that it was asked with, in words. */
  made;
  #all;
  #reader;
  #mode;
  #prompt;
  #tokens;
  /** The same answer as formatted text, where that is asked for, and its element. */
  #rendered = null;
  #formatted;
  #status;
  #plain;
  #made;
  #chosen = null;
  #byWeight = false;

  /**
   * @param {"chat" | "completion"} mode
   * @param {string} prompt
   * @param {string} made the setting that it was asked with, in words
   * @param {import("./answer.js").Answer} answer
   * @param {number} scale
   * @param {string[]} all the server's experts, in order
   * @param {{choose: (turn: Turn, index: number) => void, preview: (turn: Turn, index: number | null) => void}} reader
   */
  constructor(mode, prompt, made, answer, scale, all, reader) {
    Object.assign(this, { answer, scale, made });
    this.#mode = mode;
    this.#prompt = prompt;
    this.#all = all;
    this.#reader = reader;
    this.#formatted = element("div", { class: "formatted", role: "group", "aria-label": "The answer, formatted", hidden: true });
    this.#tokens = element("span", {
      class: "tokens",
      role: "listbox",
      "aria-label": "Tokens of the answer",
      "aria-orientation": "horizontal",
      "aria-busy": "true",
    });
    this.#status = element("p", { class: "status", text: "Waiting for the first token" });
    this.#plain = element("p", { class: "visually-hidden" });
    const question = element(mode === "chat" ? "p" : "span", { class: mode === "chat" ? "question" : "given", text: prompt });
    const text = element("div", { class: "answer" }, this.#tokens, this.#formatted);
    this.#made = element("p", { class: "made", text: made });
    this.element = element("article", { class: `turn ${mode} busy` }, this.#made);
    if (mode === "chat") this.element.append(question, text);
    else {
      text.prepend(question);
      this.element.append(text);
    }
    this.element.append(this.#plain, this.#status);
    this.#listen();
  }

  /** What is kept of it. */
  get kept() {
    const { text, experts, tokens, route, finish } = this.answer;
    const answer = { text, experts, tokens, route, finish };
    return { mode: this.#mode, prompt: this.#prompt, made: this.made, scale: this.scale, status: this.#status.textContent, answer };
  }

  /** Show the tokens that came since. */
  update() {
    const { tokens, route, arm } = this.answer;
    const chosen = [arm && `answered by ${arm}`, route && routed(route)].filter(Boolean);
    if (chosen.length) this.#made.textContent = [this.made, ...chosen].join(" · ");
    const shown = this.#tokens.childElementCount;
    this.#tokens.append(...tokens.slice(shown).map((token, i) => this.#span(token, shown + i)));
    this.#format();
    if (shown > 0 || tokens.length === 0) return;
    this.#tokens.firstChild.tabIndex = 0;
    this.#status.textContent = "";
  }

  /** @param {string} status how it ended */
  finish(status) {
    this.update();
    this.element.classList.remove("busy");
    this.#tokens.removeAttribute("aria-busy");
    if (this.answer.tokens.length === 0) this.#tokens.remove();
    this.#plain.textContent = this.answer.text && `Answer: ${this.answer.text}`;
    this.#status.textContent = status;
  }

  /** Tint the tokens by their mover's weight, or by how far they were moved. */
  tint(byWeight) {
    this.#byWeight = byWeight;
    for (const span of this.element.querySelectorAll(".token")) {
      span.style.setProperty("--strength", strength(this.answer.tokens[span.dataset.index], this.scale, byWeight));
    }
  }

  /** Show the answer as formatted text, or as it was written. In completion it is always as it was written. */
  format(markdown) {
    if (this.#mode !== "chat") return;
    this.#rendered = markdown ? new Rendered(this.#formatted, (index, text) => this.#piece(index, text)) : null;
    this.#formatted.replaceChildren();
    this.#formatted.hidden = !markdown;
    this.#tokens.hidden = markdown;
    this.#format();
    this.mark(this.#chosen);
  }

  #format() {
    if (!this.#rendered) return;
    const focused = this.#formatted.contains(document.activeElement) ? document.activeElement.dataset.index : undefined;
    this.#rendered.update(this.answer.tokens.map(({ text }) => text));
    const spans = this.#spans();
    if (!spans.some((span) => span.tabIndex === 0)) spans[0]?.setAttribute("tabindex", 0);
    // The part that grows is drawn anew.
    if (focused !== undefined && !this.#formatted.contains(document.activeElement)) {
      spans.find((span) => span.dataset.index === focused)?.focus({ preventScroll: true });
    }
  }

  /** Mark a token as the one that is looked at; null marks none. */
  mark(index) {
    for (const state of ["aria-selected", "aria-pressed"]) {
      for (const span of this.element.querySelectorAll(`[${state}="true"]`)) span.setAttribute(state, "false");
    }
    const spans = index === null ? [] : this.#spans().filter((span) => Number(span.dataset.index) === index);
    this.#chosen = index;
    if (spans.length === 0) return;
    for (const other of this.#spans()) if (other.tabIndex === 0) other.tabIndex = -1;
    spans[0].tabIndex = 0;
    for (const span of spans) span.setAttribute(this.#rendered ? "aria-pressed" : "aria-selected", "true");
  }

  /** Bring a token into sight. */
  reveal(index) {
    this.#spans().find((span) => Number(span.dataset.index) === index)?.scrollIntoView({ block: "nearest" });
  }

  /** The tokens that are shown; formatted, one may be in several pieces, and one of marks alone in none. */
  #spans() {
    return [...(this.#rendered ? this.#formatted : this.#tokens).querySelectorAll(".token")];
  }

  #span(token, index) {
    const span = this.#tinted(token, index, { role: "option", "aria-selected": "false", text: token.text });
    const shape = kind(token);
    if (shape) span.classList.add(shape);
    if (shape === "mark") span.dataset.mark = token.name;
    return span;
  }

  /** A token's part of the formatted text. */
  #piece(index, text) {
    return this.#tinted(this.answer.tokens[index], index, { role: "button", "aria-pressed": String(index === this.#chosen), text });
  }

  #tinted(token, index, attributes) {
    const { names } = mover(token);
    const span = element("span", {
      class: `token ${colourClass(names, this.#all)}`,
      tabindex: -1,
      "aria-label": `${spoken(token)}. ${explain(token)}`,
      "data-index": index,
      "data-mover": enumerate(names) || "large",
      ...attributes,
    });
    if (token.fallback) span.classList.add("fallback");
    if (token.drafted) span.classList.add("drafted");
    span.style.setProperty("--strength", strength(token, this.scale, this.#byWeight));
    return span;
  }

  #listen() {
    const indexOf = (event) => {
      const span = event.target.closest?.(".token");
      return span ? Number(span.dataset.index) : null;
    };
    // When the keyboard scrolls the text under a pointer that lies still, browsers say that it is over another token.
    let place = "";
    const moves = ({ screenX, screenY }) => place !== (place = `${screenX} ${screenY}`);
    for (const view of [this.#tokens, this.#formatted]) {
      view.addEventListener("pointermove", moves);
      view.addEventListener("pointerover", (event) => moves(event) && this.#reader.preview(this, indexOf(event)));
      view.addEventListener("pointerleave", () => this.#reader.preview(this, null));
      view.addEventListener("focusin", (event) => this.#reader.choose(this, indexOf(event)));
      view.addEventListener("click", (event) => event.target.closest(".token")?.focus({ preventScroll: true }));
      view.addEventListener("keydown", (event) => this.#go(event));
    }
  }

  /** Go to another token by keyboard. */
  #go(event) {
    const spans = this.#spans();
    const now = spans.indexOf(event.target);
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    let target = { Home: 0, End: spans.length - 1 }[event.key];
    if (event.key in steps && now >= 0) {
      target = now;
      // Past the other pieces of the same token.
      while (spans[target]?.dataset.index === event.target.dataset.index) target += steps[event.key];
    }
    if (target === undefined) return;
    event.preventDefault();
    spans[target]?.focus({ preventScroll: true });
  }
}

/** What a router chose, in words. */
function routed({ experts, probabilities, parts = {} }) {
  if (experts.length === 0) return "routed to none: the large model alone";
  const mixed = (shares) => Object.entries(shares).map(([part, share]) => `${part} ${percent(share)}`).join(", ");
  const told = (name) => (parts[name] ? mixed(parts[name]) : percent(probabilities[name]));
  return `routed to ${experts.map((name) => `${name} (${told(name)})`).join(", ")}`;
}

/** How a token without visible text is drawn. */
function kind({ text, name }) {
  if (text === "") return name === "" || name.includes("\ufffd") ? "part" : "mark";
  if (text.includes("\n")) return "break";
  return "";
}

/** A token's name for those who hear it. */
function spoken({ text, name }) {
  if (text === "") return name || "part of a character";
  if (text.trim() === "") return text.includes("\n") ? "line break" : "space";
  return text;
}
