/**
 * Markdown as a tree: what models write of CommonMark, and GitHub's tables. HTML in it is text like any other. Every
 * character knows its place in the source, so that a token is found again in what was made of it.
 *
 * @typedef {{text: string, at: number[]}} Text characters, and where each stands in the source
 * @typedef {Text & {kind: "text" | "code"} | {kind: "strong" | "em" | "del" | "link", href?: string, children: Inline[]}} Inline
 * @typedef {object} Block
 * @property {"paragraph" | "heading" | "code" | "rule" | "quote" | "list" | "table"} kind
 * @property {Inline[]} [inline] of a paragraph or a heading
 * @property {number} [level] of a heading
 * @property {Text} [code]
 * @property {Block[]} [blocks] of a quote
 * @property {number | null} [start] of a list: its first number; null where it has none
 * @property {Block[][]} [items] of a list
 * @property {Inline[][][]} [rows] of a table: cells by row, the head first
 *
 * @typedef {{text: string, start: number}} Line a part of one line of the source, and where it begins
 */

import { inline } from "./inline.js";

/** Deeper lists and quotes are read as text. */
const DEEPEST = 8;

const FENCE = /^ {0,3}(`{3,}(?=[^`]*$)|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const DELIMITER = /^:?-+:?$/;

/** @param {string} source @returns {(Block & {from: number, to: number})[]} with the part of the source that each was made of */
export function parse(source) {
  let start = 0;
  const lines = source.split("\n").map((text) => {
    const line = { text, start };
    start += text.length + 1;
    return line;
  });
  return blocksOf(lines, 0);
}

/** @param {Line[]} lines */
function blocksOf(lines, depth) {
  const blocks = [];
  let next = 0;
  while (next < lines.length) {
    if (isBlank(lines[next])) {
      next += 1;
      continue;
    }
    const first = next;
    const [block, after] = blockAt(lines, first, depth);
    next = after;
    const last = lines[after - 1];
    blocks.push({ ...block, from: lines[first].start, to: last.start + last.text.length });
  }
  return blocks;
}

/** The block that begins at a line, and the line after it. */
function blockAt(lines, first, depth) {
  const { text } = lines[first];
  if (FENCE.test(text)) return fenced(lines, first);
  const heading = HEADING.exec(text);
  if (heading) {
    const line = part(lines[first], heading[0].length, Math.max(heading[0].length, withoutClosing(text.trimEnd()).length));
    return [{ kind: "heading", level: heading[1].length, inline: inline(joined([line])) }, first + 1];
  }
  if (RULE.test(text)) return [{ kind: "rule" }, first + 1];
  if (depth < DEEPEST && QUOTE.test(text)) {
    const after = end(lines, first, (line) => QUOTE.test(line.text));
    const inner = lines.slice(first, after).map((line) => part(line, QUOTE.exec(line.text)[0].length));
    return [{ kind: "quote", blocks: blocksOf(inner, depth + 1) }, after];
  }
  if (depth < DEEPEST && ITEM.test(text)) return list(lines, first, depth);
  if (isTable(lines, first)) return table(lines, first);
  const after = end(lines, first + 1, (line, i) => !isBlank(line) && !interrupts(line.text) && !isTable(lines, i));
  return [{ kind: "paragraph", inline: inline(joined(lines.slice(first, after).map(withoutIndent))) }, after];
}

/** A heading without the marks that may end it. */
function withoutClosing(text) {
  let to = text.length;
  while (text[to - 1] === "#") to -= 1;
  return " \t".includes(text[to - 1] ?? "x") ? text.slice(0, to).trimEnd() : text;
}

function fenced(lines, first) {
  const fence = FENCE.exec(lines[first].text)[1];
  const closes = ({ text }) => text.trim().length >= fence.length && text.trim() === fence[0].repeat(text.trim().length);
  const after = end(lines, first + 1, (line) => !closes(line));
  return [{ kind: "code", code: joined(lines.slice(first + 1, after)) }, Math.min(lines.length, after + 1)];
}

function list(lines, first, depth) {
  const [, , marker] = ITEM.exec(lines[first].text);
  const kind = marker.at(-1);
  const items = [];
  let next = first;
  while (next < lines.length) {
    const found = ITEM.exec(lines[next].text);
    if (!found || found[2].at(-1) !== kind || RULE.test(lines[next].text)) break;
    const width = found[3].length > 4 ? found[0].length - found[3].length + 1 : Math.max(found[0].length, found[1].length + found[2].length + 1);
    const inner = [part(lines[next], Math.min(width, lines[next].text.length))];
    next += 1;
    while (next < lines.length) {
      const line = lines[next];
      const filled = end(lines, next, isBlank);
      // What is indented belongs to the item, also after empty lines; without any, so does a paragraph that goes on.
      if (indent(lines[filled]?.text ?? "") >= width) inner.push(...lines.slice(next, filled + 1).map((each) => outdented(each, width)));
      else if (filled === next && !interrupts(line.text) && !ITEM.test(line.text)) inner.push(line);
      else break;
      next = filled + 1;
    }
    items.push(blocksOf(inner, depth + 1));
    const filled = end(lines, next, isBlank);
    if (filled < lines.length && ITEM.test(lines[filled].text)) next = filled;
  }
  return [{ kind: "list", start: /\d/.test(marker) ? Number.parseInt(marker, 10) : null, items }, next];
}

function isTable(lines, first) {
  const [head, delimiters] = [lines[first], lines[first + 1]];
  if (!head?.text.includes("|") || !delimiters?.text.includes("-")) return false;
  const marks = cells(delimiters);
  return marks.every(({ text }) => DELIMITER.test(text)) && marks.length === cells(head).length;
}

function table(lines, first) {
  const after = end(lines, first + 2, (line) => !isBlank(line) && !interrupts(line.text) && line.text.includes("|"));
  const rows = [lines[first], ...lines.slice(first + 2, after)].map(cells);
  const filled = rows.map((row) => rows[0].map((_, column) => row[column] ?? { text: "", start: 0 }));
  return [{ kind: "table", rows: filled.map((row) => row.map((cell) => inline(joined([cell])))) }, after];
}

/** @param {Line} line @returns {Line[]} */
function cells(line) {
  const { text } = line;
  const found = [];
  const bars = [...text.matchAll(/\\.|\|/g)].filter(([mark]) => mark === "|").map(({ index }) => index);
  const edges = [-1, ...bars, text.length];
  for (const [i, edge] of edges.slice(0, -1).entries()) {
    const cell = part(line, edge + 1, edges[i + 1]);
    // Before the first bar and after the last one there need be nothing.
    if ((i === 0 || i === edges.length - 2) && isBlank(cell)) continue;
    found.push(withoutIndent({ ...cell, text: cell.text.trimEnd() }));
  }
  return found;
}

/** Whether a line ends the paragraph before it. */
function interrupts(text) {
  const item = ITEM.exec(text);
  const lists = item && item[3] !== "" && (!/\d/.test(item[2]) || Number.parseInt(item[2], 10) === 1);
  return lists || FENCE.test(text) || HEADING.test(text) || RULE.test(text) || QUOTE.test(text);
}

/** The first line from `next` on that does not belong. */
function end(lines, next, belongs) {
  let after = next;
  while (after < lines.length && belongs(lines[after], after)) after += 1;
  return after;
}

function isBlank({ text }) {
  return text.trim() === "";
}

function part({ text, start }, from, to = text.length) {
  return { text: text.slice(from, to), start: start + from };
}

function withoutIndent(line) {
  return part(line, line.text.length - line.text.trimStart().length);
}

/** How many columns a line is indented by. */
function indent(text) {
  return text.match(/^[ \t]*/)[0].replaceAll("\t", "    ").length;
}

/** A line without so many columns of its indent. */
function outdented(line, columns) {
  let from = 0;
  for (let left = columns; left > 0 && " \t".includes(line.text[from] ?? "x"); from += 1) left -= line.text[from] === "\t" ? 4 : 1;
  return part(line, from);
}

/** @param {Line[]} lines @returns {Text} */
function joined(lines) {
  const text = lines.map((line) => line.text).join("\n");
  const at = lines.flatMap((line) => Array.from({ length: line.text.length + 1 }, (_, i) => line.start + i)).slice(0, text.length);
  return { text, at };
}
