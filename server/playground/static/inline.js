/** Markdown within a paragraph: emphasis, code and links, as a tree (see markdown.js). */

/** Marks that may still be closed; of more, the oldest are text. */
const MOST_OPEN = 64;

const MARK = /[\\`*_~[\]<]|!\[|https?:\/\//g;
const ESCAPED = /\\([!-/:-@[-`{-~])/y;
const TARGET = /\(\s{0,9}(?:<([^<>\n]*)>|((?:[^\s()<>]|\([^\s()<>]*\))*))(?:\s{1,9}(?:"[^"]*"|'[^']*'))?\s{0,9}\)/y;
const ADDRESS = /https?:\/\/[^\s<>]*[^\s<>.,:;!?'")\]*_~|`]/y;
const BRACKETED = /<(https?:\/\/[^\s<>]+)>/y;

/** @param {import("./markdown.js").Text} source @returns {import("./markdown.js").Inline[]} */
export function inline(source) {
  return new Reader(source).read();
}

class Reader {
  #text;
  #at;
  #place = 0;
  #nodes = [];
  /** Marks that may yet become emphasis: the node that holds them, which character, how many. */
  #open = [];
  /** Where a link may have begun. */
  #brackets = [];
  /** Lengths of backtick runs that nothing closes from here on. */
  #unclosed = new Set();

  constructor({ text, at }) {
    this.#text = text;
    this.#at = at;
  }

  read() {
    while (this.#place < this.#text.length) {
      MARK.lastIndex = this.#place;
      const mark = MARK.exec(this.#text);
      const place = mark?.index ?? this.#text.length;
      if (place > this.#place) this.#push(place);
      if (mark) this.#readMark(mark[0]);
    }
    return this.#nodes;
  }

  #readMark(mark) {
    if (mark === "\\") this.#escape();
    else if (mark === "`") this.#code();
    else if (mark === "[" || mark === "![") {
      this.#brackets.push(this.#nodes.length);
      this.#push(this.#place + mark.length);
    } else if (mark === "]") this.#closeBracket();
    else if (mark === "<" || mark.startsWith("http")) this.#address(mark === "<" ? BRACKETED : ADDRESS);
    else this.#emphasis(mark);
  }

  /** Take the text up to `place` as it is. */
  #push(place) {
    this.#nodes.push(this.#cut("text", this.#place, place));
    this.#place = place;
  }

  #cut(kind, from, to) {
    return { kind, text: this.#text.slice(from, to), at: this.#at.slice(from, to) };
  }

  #match(pattern) {
    pattern.lastIndex = this.#place;
    return pattern.exec(this.#text);
  }

  #escape() {
    // A mark that is escaped is text; a line that ends so breaks, as every line does here.
    if (this.#match(ESCAPED) || this.#text[this.#place + 1] === "\n") this.#place += 1;
    this.#push(Math.min(this.#text.length, this.#place + 1));
  }

  #code() {
    const run = this.#match(/`+/y)[0];
    const from = this.#place + run.length;
    const to = this.#unclosed.has(run.length) ? -1 : this.#closing(run, from);
    if (to < 0) {
      this.#unclosed.add(run.length);
      this.#push(from);
      return;
    }
    const text = this.#text.slice(from, to);
    const padded = text.startsWith(" ") && text.endsWith(" ") && text.trim() !== "" ? 1 : 0;
    this.#nodes.push(this.#cut("code", from + padded, to - padded));
    this.#place = to + run.length;
  }

  /** Where the next run of just so many backticks is, or -1. */
  #closing(run, from) {
    for (let place = this.#text.indexOf(run, from); place >= 0; place = this.#text.indexOf(run, place)) {
      let after = place;
      while (this.#text[after] === "`") after += 1;
      if (after - place === run.length) return place;
      place = after;
    }
    return -1;
  }

  #closeBracket() {
    const start = this.#brackets.pop();
    this.#push(this.#place + 1);
    const target = start === undefined ? null : this.#match(TARGET);
    if (!target) return;
    this.#nodes.pop();
    const [bracket, ...children] = this.#nodes.splice(start);
    this.#open = this.#open.filter(({ node }) => this.#nodes.includes(node));
    // A picture would be asked of another host: its description stands for it, with a link to it.
    const isPicture = bracket.text === "![";
    const href = safe(target[1] ?? target[2]);
    const from = this.#place + target[0].indexOf(target[1] ?? target[2]);
    const label = isPicture && children.length === 0 ? [this.#cut("text", from, from + (target[1] ?? target[2]).length)] : children;
    this.#nodes.push(...(href ? [{ kind: "link", href, children: label }] : label));
    this.#place += target[0].length;
    if (!isPicture) this.#brackets = []; // no link lies in another
  }

  #address(pattern) {
    const found = this.#match(pattern);
    const address = found?.[1] ?? found?.[0];
    const href = address && !this.#brackets.length ? safe(address) : null;
    if (!href) {
      this.#push(this.#place + 1);
      return;
    }
    const from = this.#place + found[0].indexOf(address);
    this.#nodes.push({ kind: "link", href, children: [this.#cut("text", from, from + address.length)] });
    this.#place += found[0].length;
  }

  #emphasis(mark) {
    const from = this.#place;
    let to = from;
    while (this.#text[to] === mark) to += 1;
    const [before, after] = [this.#text[from - 1] ?? " ", this.#text[to] ?? " "];
    const within = mark === "_" && /[\p{L}\p{N}]/u.test(before) && /[\p{L}\p{N}]/u.test(after);
    const opens = !within && !/\s/.test(after);
    const closes = !within && !/\s/.test(before);
    if (mark === "~" && to - from !== 2) {
      this.#push(to);
      return;
    }
    while (closes && this.#place < to) {
      const i = this.#open.findLastIndex((open) => open.mark === mark);
      if (i < 0) break;
      this.#close(i, to - this.#place);
    }
    if (this.#place === to) return;
    this.#push(to);
    if (opens) this.#open.push({ node: this.#nodes.at(-1), mark });
    if (this.#open.length > MOST_OPEN) this.#open.shift();
  }

  /** Close an opened mark by one or two of those at hand. */
  #close(i, left) {
    const { node, mark } = this.#open[i];
    const count = Math.min(2, node.text.length, left);
    const start = this.#nodes.lastIndexOf(node);
    const children = this.#nodes.splice(start + 1);
    this.#brackets = this.#brackets.filter((bracket) => bracket <= start);
    this.#open.length = i + 1;
    node.text = node.text.slice(count);
    node.at = node.at.slice(0, node.text.length);
    if (node.text === "") {
      this.#nodes.pop();
      this.#open.pop();
    }
    this.#nodes.push({ kind: mark === "~" ? "del" : count === 2 ? "strong" : "em", children });
    this.#place += count;
  }
}

/** An address that a click may lead to, or null: other schemes could run code, and what is relative leads to this server. */
function safe(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}
