/** An answer as formatted text, made of pieces of its tokens. */

import { element } from "./dom.js";
import { parse } from "./markdown.js";

export class Rendered {
  #root;
  #piece;
  /** The blocks that are shown, each with what it was made of. */
  #shown = [];

  /**
   * @param {HTMLElement} root
   * @param {(index: number, text: string) => Node} piece an element for a token's part of the text
   */
  constructor(root, piece) {
    this.#root = root;
    this.#piece = piece;
  }

  /** Show a text that has grown; what did not change stays as it is. @param {string[]} texts those of the tokens */
  update(texts) {
    const tokenAt = texts.flatMap((text, index) => Array(text.length).fill(index));
    const source = texts.join("");
    const blocks = parse(source);
    const draw = new Drawing(tokenAt, this.#piece);
    const made = blocks.map((block, i) => {
      const text = source.slice(block.from, block.to);
      const before = this.#shown[i];
      if (before && before.from === block.from && before.text === text && before.last === tokenAt[block.to - 1]) return before;
      const node = draw.block(block);
      if (before) before.node.replaceWith(node);
      else this.#root.append(node);
      return { from: block.from, text, last: tokenAt[block.to - 1], node };
    });
    for (const { node } of this.#shown.slice(made.length)) node.remove();
    this.#shown = made;
  }
}

class Drawing {
  #tokenAt;
  #piece;

  constructor(tokenAt, piece) {
    this.#tokenAt = tokenAt;
    this.#piece = piece;
  }

  /** @param {import("./markdown.js").Block} block */
  block(block) {
    const blocks = (some) => some.map((each) => this.block(each));
    switch (block.kind) {
      case "heading":
        // Below the page's own headings, whichever levels the model left out.
        return element("h2", { class: `level-${block.level}` }, ...this.#inline(block.inline));
      case "code":
        return element("pre", {}, element("code", {}, ...this.#text(block.code)));
      case "rule":
        return element("hr");
      case "quote":
        return element("blockquote", {}, ...blocks(block.blocks));
      case "list": {
        const items = block.items.map((item) => element("li", {}, ...blocks(item)));
        return block.start === null ? element("ul", {}, ...items) : element("ol", { start: block.start }, ...items);
      }
      case "table":
        return this.#table(block.rows);
      default:
        return element("p", {}, ...this.#inline(block.inline));
    }
  }

  #table([head, ...rows]) {
    const row = (cells, tag) => element("tr", {}, ...cells.map((cell) => element(tag, {}, ...this.#inline(cell))));
    return element("table", {}, element("thead", {}, row(head, "th")), element("tbody", {}, ...rows.map((cells) => row(cells, "td"))));
  }

  /** @param {import("./markdown.js").Inline[]} nodes */
  #inline(nodes) {
    const made = [];
    let plain = [];
    const flush = () => {
      made.push(...this.#text({ text: plain.map(({ text }) => text).join(""), at: plain.flatMap(({ at }) => at) }));
      plain = [];
    };
    for (const node of nodes) {
      if (node.kind === "text") {
        plain.push(node);
        continue;
      }
      flush();
      if (node.kind === "code") made.push(element("code", {}, ...this.#text(node)));
      else if (node.kind === "link") {
        const attributes = { href: node.href, title: node.href, target: "_blank", rel: "noopener noreferrer" };
        made.push(element("a", attributes, ...this.#inline(node.children)));
      } else made.push(element(node.kind, {}, ...this.#inline(node.children)));
    }
    flush();
    return made;
  }

  /** Text in pieces, each of one token. @param {import("./markdown.js").Text} text */
  #text({ text, at }) {
    const pieces = [];
    for (let from = 0; from < text.length; ) {
      const token = this.#tokenAt[at[from]];
      let to = from + 1;
      while (to < text.length && this.#tokenAt[at[to]] === token) to += 1;
      pieces.push(this.#piece(token, text.slice(from, to)));
      from = to;
    }
    return pieces;
  }
}
