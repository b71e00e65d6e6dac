/** The strip chart: one row per expert, one column per token, bars as high as alpha. Drawn as tokens arrive. */

import { decimal, element, oncePerFrame, svgElement } from "./dom.js";
import { colourClass, enumerate, mover } from "./experts.js";

const ROW_HEIGHT = 28;
const WIDEST_COLUMN = 14;
/** A short answer fills the strip's left part, so that a growing one is seen to grow. */
const FEWEST_COLUMNS = 24;

export class Chart {
  #root;
  #all;
  #choose;
  #preview;
  #answer = null;
  #scale = 1;
  #rows = [];
  #marked = null;
  #draw = oncePerFrame(() => this.#drawNow());

  /**
   * @param {HTMLElement} root the figure
   * @param {string[]} all the server's experts, in order
   * @param {{choose: (index: number) => void, preview: (index: number | null) => void}} reader
   */
  constructor(root, all, { choose, preview }) {
    this.#root = root;
    this.#all = all;
    this.#choose = choose;
    this.#preview = preview;
    new ResizeObserver(this.#draw).observe(root.querySelector(".rows"));
    root.querySelector(".numbers").addEventListener("toggle", () => this.#fillTable());
  }

  /** Show an answer, whose bars reach the top at `scale`. @param {import("./answer.js").Answer} answer */
  show(answer, scale) {
    this.#answer = answer;
    this.#scale = scale;
    this.#marked = null;
    this.#rows = [];
    this.#root.querySelector(".rows").replaceChildren();
    this.#root.querySelector(".numbers").open = false;
    this.update();
  }

  /** Draw the tokens that came since; call once per frame. */
  update() {
    this.#drawNow();
  }

  /** Mark one column; null marks none. */
  mark(index) {
    this.#marked = index;
    this.#draw();
  }

  /** Say in words what the bars show; call when the answer is complete. */
  describe() {
    this.#root.querySelector(".summary").textContent = this.#summary();
    this.#fillTable();
  }

  #drawNow() {
    const answer = this.#answer;
    if (answer === null || answer.tokens.length === 0) return;
    if (this.#rows.length === 0) this.#rows = answer.experts.map((name) => this.#row(name));
    this.#root.classList.toggle("empty", this.#rows.length === 0);
    const alphas = answer.tokens.flatMap((token) => Object.values(token.alpha).map((alpha) => alpha ?? 0));
    const scale = Math.max(this.#scale, ...alphas.map(Math.abs));
    const signed = alphas.some((alpha) => alpha < 0);
    for (const row of this.#rows) this.#drawRow(row, scale, signed);
  }

  #drawRow({ name, svg, bars, zero, mark, most }, scale, signed) {
    const { tokens } = this.#answer;
    const width = svg.clientWidth;
    const column = this.#column(width);
    svg.setAttribute("viewBox", `0 0 ${width} ${ROW_HEIGHT}`);
    const baseline = signed ? ROW_HEIGHT / 2 : ROW_HEIGHT;
    const gap = column > 4 ? 1 : 0;
    const parts = tokens.map((token, i) => {
      const height = ((token.alpha[name] ?? 0) / scale) * (baseline - 1);
      return height === 0 ? "" : `M${i * column},${baseline}v${-height}h${column - gap}v${height}z`;
    });
    bars.setAttribute("d", parts.join(""));
    zero.setAttribute("d", `M0,${baseline - 0.5}H${tokens.length * column}`);
    mark.setAttribute("x", (this.#marked ?? 0) * column - gap / 2);
    mark.setAttribute("width", this.#marked === null ? 0 : column);
    most.textContent = `${signed ? "±" : ""}${Number(scale.toFixed(2))}`;
    svg.dataset.tokens = tokens.length;
  }

  #column(width) {
    return Math.min(WIDEST_COLUMN, width / Math.max(FEWEST_COLUMNS, this.#answer.tokens.length));
  }

  #row(name) {
    const svg = svgElement("svg", { class: "bars", height: ROW_HEIGHT, "aria-hidden": "true" });
    const mark = svgElement("rect", { class: "mark", y: 0, height: ROW_HEIGHT });
    const zero = svgElement("path", { class: "zero" });
    const bars = svgElement("path", { class: "bar" });
    svg.append(mark, zero, bars);
    const at = (event) => {
      const index = Math.floor((event.clientX - svg.getBoundingClientRect().left) / this.#column(svg.clientWidth));
      return index >= 0 && index < this.#answer.tokens.length ? index : null;
    };
    svg.addEventListener("pointermove", (event) => this.#preview(at(event)));
    svg.addEventListener("pointerleave", () => this.#preview(null));
    svg.addEventListener("click", (event) => at(event) !== null && this.#choose(at(event)));
    const most = element("span", { class: "most", "aria-hidden": "true" });
    const label = element("span", { class: "name", text: name });
    const row = element("div", { class: `row ${colourClass([name], this.#all)}` }, label, most, svg);
    this.#root.querySelector(".rows").append(row);
    return { name, svg, bars, zero, mark, most };
  }

  #summary() {
    const { tokens, experts } = this.#answer;
    if (experts.length === 0) return "No expert was used: the large model answered alone.";
    const sentences = experts.map((name) => {
      const alphas = tokens.map((token) => token.alpha[name] ?? 0);
      const mean = alphas.reduce((sum, alpha) => sum + alpha, 0) / (tokens.length || 1);
      const moved = tokens.flatMap((token, i) => (mover(token).names.includes(name) ? [i + 1] : []));
      const where = moved.length ? `moved ${enumerate(ranges(moved))} most` : "moved none most";
      return `${name}: mean alpha ${decimal(mean)}, ${where}.`;
    });
    return `${tokens.length} tokens. ${sentences.join(" ")}`;
  }

  #fillTable() {
    const numbers = this.#root.querySelector(".numbers");
    if (!numbers.open || this.#answer === null) return;
    const { tokens, experts } = this.#answer;
    const head = ["", "Token", ...experts].map((text) => element("th", { scope: "col", text }));
    head[0] = element("td");
    const rows = tokens.map((token, i) =>
      element(
        "tr",
        {},
        element("th", { scope: "row", text: i + 1 }),
        element("td", { class: "text", text: token.text || token.name }),
        ...experts.map((name) => element("td", { text: decimal(token.alpha[name]) })),
      ),
    );
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
    numbers.querySelector(".table").replaceChildren(table);
  }
}

/** [1, 2, 3, 7] as ["tokens 1 to 3", "token 7"]. */
function ranges(numbers) {
  const found = [];
  for (const number of numbers) {
    const last = found.at(-1);
    if (last && last[1] === number - 1) last[1] = number;
    else found.push([number, number]);
  }
  return found.map(([first, last]) => (first === last ? `token ${first}` : `tokens ${first} to ${last}`));
}
