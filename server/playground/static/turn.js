/** One question and its answer: tokens tinted by expert, one of them chosen by pointer or keyboard. */

import { element, percent } from "./dom.js";
import { colourClass, enumerate, mover, strength } from "./experts.js";
import { explain } from "./inspector.js";

export class Turn {
  /** @type {import("./answer.js").Answer} */
  answer;
  /** The weight that is shown at full strength. */
  scale;
  /** The setting that it was asked with, in words. */
  made;
  #all;
  #reader;
  #tokens;
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
    this.#all = all;
    this.#reader = reader;
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
    const text = element("div", { class: "answer" }, this.#tokens);
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

  /** Show the tokens that came since. */
  update() {
    const { tokens, route, arm } = this.answer;
    const chosen = [arm && `answered by ${arm}`, route && routed(route)].filter(Boolean);
    if (chosen.length) this.#made.textContent = [this.made, ...chosen].join(" · ");
    const shown = this.#tokens.childElementCount;
    this.#tokens.append(...tokens.slice(shown).map((token, i) => this.#span(token, shown + i)));
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
    for (const [i, span] of [...this.#tokens.children].entries()) {
      span.style.setProperty("--strength", strength(this.answer.tokens[i], this.scale, byWeight));
    }
  }

  /** Mark a token as the one that is looked at; null marks none. */
  mark(index) {
    const before = this.#tokens.children[this.#chosen];
    before?.setAttribute("aria-selected", "false");
    const span = this.#tokens.children[index];
    this.#chosen = span ? index : null;
    if (!span) return;
    for (const other of this.#tokens.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    span.tabIndex = 0;
    span.setAttribute("aria-selected", "true");
  }

  /** Bring a token into sight. */
  reveal(index) {
    this.#tokens.children[index]?.scrollIntoView({ block: "nearest" });
  }

  #span(token, index) {
    const { names } = mover(token);
    const span = element("span", {
      role: "option",
      class: `token ${colourClass(names, this.#all)} ${kind(token)}`,
      tabindex: -1,
      "aria-selected": "false",
      "aria-label": `${spoken(token)}. ${explain(token)}`,
      "data-index": index,
      "data-mover": enumerate(names) || "large",
      "data-mark": kind(token) === "mark" ? token.name : null,
      text: token.text,
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
    this.#tokens.addEventListener("pointermove", moves);
    this.#tokens.addEventListener("pointerover", (event) => moves(event) && this.#reader.preview(this, indexOf(event)));
    this.#tokens.addEventListener("pointerleave", () => this.#reader.preview(this, null));
    this.#tokens.addEventListener("focusin", (event) => this.#reader.choose(this, indexOf(event)));
    this.#tokens.addEventListener("click", (event) => this.#tokens.children[indexOf(event)]?.focus({ preventScroll: true }));
    this.#tokens.addEventListener("keydown", (event) => {
      const last = this.answer.tokens.length - 1;
      const now = indexOf(event) ?? 0;
      const targets = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: last };
      const target = targets[event.key];
      if (target === undefined) return;
      event.preventDefault();
      this.#tokens.children[Math.min(last, Math.max(0, target))].focus({ preventScroll: true });
    });
  }
}

/** What a router chose, in words. */
function routed({ experts, probabilities }) {
  if (experts.length === 0) return "routed to none: the large model alone";
  return `routed to ${experts.map((name) => `${name} (${percent(probabilities[name])})`).join(", ")}`;
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
