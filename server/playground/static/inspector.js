/** What is known of one token: who moved it, how far, and what each member and the fusion thought likely. */

import { decimal, element, percent } from "./dom.js";
import { colourClass, enumerate, mover } from "./experts.js";

/**
 * Who moved a token, in a sentence, and in another whether it was known before.
 * @param {import("./answer.js").Token} token
 */
export function explain(token) {
  return token.drafted ? `${moved(token)} A member had drafted it.` : moved(token);
}

function moved(token) {
  if (token.fallback) return "The large model answered alone here: a member's logits were not finite.";
  const { names, alpha } = mover(token);
  if (names.length === 0) {
    const used = Object.keys(token.alpha).length > 0;
    return used ? "No expert moved this token." : "The large model answered alone.";
  }
  if (names.length > 1) {
    const alphas = names.map((name) => token.alpha[name]);
    if (alphas.every((value) => Math.sign(value) === Math.sign(alpha))) {
      return `${enumerate(names)} have the same weight here, alpha ${decimal(alpha)}.`;
    }
    return `${enumerate(names.map((name) => `${name} (alpha ${decimal(token.alpha[name])})`))} pull equally hard here, not all the same way.`;
  }
  return `${names[0]} moved this token most, with alpha ${decimal(alpha)}.`;
}

export class Inspector {
  #root;
  #all;
  /** The largest height of a title so far, in px. */
  #title = 0;

  /** @param {HTMLElement} root @param {string[]} all the server's experts, in order */
  constructor(root, all) {
    this.#root = root;
    this.#all = all;
    this.clear();
  }

  clear() {
    this.#title = 0;
    const hint = "Point at a token, or go to one with Tab and the arrow keys, to see what moved it.";
    this.#root.replaceChildren(element("p", { class: "hint", text: hint }));
  }

  /** @param {import("./answer.js").Token} token @param {number} index @param {number} count */
  show(token, index, count) {
    const { names } = mover(token);
    const chip = element("code", { class: "chosen", text: visible(token.text || token.name) });
    const place = element("span", { class: "place", text: `Token ${index + 1} of ${count}` });
    const sentence = element("span", { class: "sentence", text: explain(token), title: explain(token) });
    const title = element("p", { class: "title" }, chip, place, sentence);
    const members = Object.entries(token.lens);
    const parts = members.length ? [this.#lens(members, token), numbers(token)] : [];
    this.#root.className = `inspector ${colourClass(names, this.#all)}`;
    this.#root.replaceChildren(title, ...parts);
    // A long sentence takes two lines: from then on there is room for them.
    this.#title = Math.max(this.#title, title.offsetHeight);
    title.style.minHeight = `${this.#title}px`;
  }

  /** A row for each member and the fusion: its weight, this token's probability, its likeliest tokens. */
  #lens(members, token) {
    const heads = ["", "alpha", "chosen", "likeliest"].map((text) => (text ? element("th", { scope: "col", text }) : element("td")));
    const rows = members.map(([name, thought]) => {
      const alpha = name in token.alpha ? decimal(token.alpha[name]) : "";
      const hue = this.#all.includes(name) ? colourClass([name], this.#all) : null;
      const likeliest = element("ol", {}, ...thought.top.map((entry) => likely(entry, token)));
      return element(
        "tr",
        { class: name === "fused" ? "fused" : hue },
        element("th", { scope: "row", text: name, title: name }),
        element("td", { text: alpha }),
        element("td", { text: thought.p === null ? "?" : percent(thought.p) }),
        element("td", {}, likeliest),
      );
    });
    const caption = element("caption", { class: "visually-hidden", text: "What each member thought" });
    return element("table", { class: "lens" }, caption, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows));
  }
}

function likely({ id, token: text, p }, token) {
  const bar = element("span", { class: "bar" });
  bar.style.setProperty("--share", p);
  const isChosen = id === token.id;
  const label = element("span", { class: "p", text: percent(p) });
  if (isChosen) label.append(element("span", { class: "visually-hidden", text: " chosen" }));
  return element("li", { class: isChosen ? "is-chosen" : null, title: visible(text) }, bar, element("code", { text: visible(text) }), label);
}

/** What fine-tuning moved, and what fusion moved. */
function numbers({ klTarget: [a, b], klFused: [f, g] }) {
  const note = (text) => element("span", { class: "note", text });
  const told = `: target ${decimal(a)}, ${decimal(b)}; reached ${decimal(f)}, ${decimal(g)}`;
  const meant = " nats. Target: between expert and base. Reached: between fused and large.";
  return element("p", { class: "divergences" }, "KL", note(" (forward, back)"), told, note(meant));
}

/** A token whose spaces and line breaks can be seen. */
function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}
