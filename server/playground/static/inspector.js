/** What is known of one token: who moved it, how far, and what was likely before and after. */

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

  /** @param {HTMLElement} root @param {string[]} all the server's experts, in order */
  constructor(root, all) {
    this.#root = root;
    this.#all = all;
    this.clear();
  }

  clear() {
    const hint = "Point at a token, or go to one with Tab and the arrow keys, to see what moved it.";
    this.#root.replaceChildren(element("p", { class: "hint", text: hint }));
  }

  /** @param {import("./answer.js").Token} token @param {number} index @param {number} count */
  show(token, index, count) {
    const { names } = mover(token);
    const chip = element("code", { class: "chosen", text: visible(token.text || token.name) });
    const place = element("span", { class: "place", text: `Token ${index + 1} of ${count}` });
    const title = element("p", { class: "title" }, chip, place, element("span", { text: explain(token) }));
    const detail = element("div", { class: "detail" });
    if (token.before.length) detail.append(this.#top("Before: the large model", token.before, token));
    if (token.after.length) detail.append(this.#top("After fusion", token.after, token));
    if (Object.keys(token.alpha).length) detail.append(this.#numbers(token));
    this.#root.className = `inspector ${colourClass(names, this.#all)}`;
    this.#root.replaceChildren(title, detail);
  }

  #top(heading, entries, token) {
    const items = entries.map(({ id, token: text, p }) => {
      const bar = element("span", { class: "bar" });
      bar.style.setProperty("--share", p);
      const isChosen = id === token.id;
      const word = element("code", { text: visible(text) });
      const label = element("span", { class: "p", text: percent(p) });
      if (isChosen) label.append(element("span", { class: "visually-hidden", text: " chosen" }));
      return element("li", { class: isChosen ? "is-chosen" : null }, bar, word, label);
    });
    const list = element("ol", {}, ...items);
    const block = element("div", { class: heading.startsWith("After") ? "top after" : "top" });
    block.append(element("h3", { text: heading }), list);
    return block;
  }

  #numbers(token) {
    const alphas = Object.entries(token.alpha).map(([name, alpha]) =>
      element("tr", { class: colourClass([name], this.#all) }, element("th", { scope: "row", text: name }), element("td", { text: decimal(alpha) })),
    );
    const weights = element("table", { class: "weights" }, element("caption", { text: "Alpha" }), element("tbody", {}, ...alphas));
    const [a, b] = token.klTarget;
    const [f, g] = token.klFused;
    const divergences = element(
      "table",
      {},
      element("caption", { text: "Divergence, in nats" }),
      element("thead", {}, row("td", "", ["target", "reached"], "th")),
      element(
        "tbody",
        {},
        row("th", "forward", [decimal(a), decimal(f)]),
        row("th", "backward", [decimal(b), decimal(g)]),
      ),
    );
    const note = "Target: KL between expert and base, what fine-tuning moved. Reached: KL between fused and large.";
    return element("div", { class: "numbers" }, weights, divergences, element("p", { class: "hint", text: note }));
  }
}

function row(headTag, head, cells, cellTag = "td") {
  const made = element("tr", {}, element(headTag, { text: head, scope: headTag === "th" ? "row" : null }));
  for (const text of cells) made.append(element(cellTag, { text, scope: cellTag === "th" ? "col" : null }));
  return made;
}

/** A token whose spaces and line breaks can be seen. */
function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}
