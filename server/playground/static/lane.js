/** One side of the page: a setting, the conversation under it, and the evidence of its tokens. */

import { Answer } from "./answer.js";
import { stream } from "./api.js";
import { Chart } from "./chart.js";
import { element, oncePerFrame } from "./dom.js";
import { colourClass, mover } from "./experts.js";
import { Inspector } from "./inspector.js";
import { body, extras, ROUTES } from "./request.js";
import { SettingControls } from "./setting.js";
import { Turn } from "./turn.js";

/** Over a shorter time a rate says nothing. */
const SHORTEST_MS = 50;

export class Lane {
  /** @type {{role: string, content: string}[]} */
  messages = [];
  /** @type {SettingControls} */
  setting;
  #server;
  #transcript;
  #error;
  #evidence;
  #legend;
  #chart;
  #inspector;
  #byWeight = false;
  #markdown = false;
  /** @type {Turn[]} */
  #turns = [];
  /** The turn that the chart shows, its chosen token, and the one that the pointer is on. */
  #turn = null;
  #chosen = null;
  #pointed = null;
  #inspected;

  /**
   * @param {import("./request.js").Server} server
   * @param {string} side "A" or "B"
   * @param {() => void} changed called when the setting changes
   */
  constructor(server, side, changed) {
    this.#server = server;
    const template = document.querySelector("#lane-template");
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.setAttribute("aria-label", `Setting ${side}`);
    const find = (selector) => this.element.querySelector(selector);
    find(".side").textContent = side;
    this.#transcript = find(".transcript");
    const labels = {
      ".transcript": "Conversation",
      ".evidence": "What moved the tokens",
      ".legend": "Colours",
      ".table": "Alpha of every token",
      ".inspector": "Chosen token",
    };
    for (const [selector, label] of Object.entries(labels)) find(selector).setAttribute("aria-label", `${label}, ${side}`);
    this.#error = find(".error");
    this.#evidence = find(".evidence");
    this.#legend = find(".legend");
    find(".save").addEventListener("click", () => this.#download());
    this.setting = new SettingControls(find(".setting"), server, changed);
    this.#inspected = find(".inspector");
    this.#inspector = new Inspector(this.#inspected, server.experts);
    // Where it lies over the text, a chosen token is kept above it.
    const measure = () => this.element.style.setProperty("--inspector", `${this.#inspected.offsetHeight}px`);
    new ResizeObserver(measure).observe(this.#inspected);
    this.#chart = new Chart(find(".chart"), server.experts, {
      choose: (index) => this.#choose(this.#turn, index),
      preview: (index) => this.#preview(this.#turn, index),
    });
  }

  /** The request that the next prompt would make. */
  body(mode, messages, sampling) {
    return body(mode, messages, this.setting.value, this.setting.preset, sampling);
  }

  /** Tint tokens by their mover's weight, or by how far they were moved. */
  tint(byWeight) {
    this.#byWeight = byWeight;
    for (const turn of this.#turns) turn.tint(byWeight);
  }

  /** Show answers as formatted text, or as they were written. */
  format(markdown) {
    this.#markdown = markdown;
    this.#keepAtEnd(() => this.#turns.forEach((turn) => turn.format(markdown)));
  }

  /** The last answer, if there is one. */
  get latest() {
    return this.#turns.at(-1) ?? null;
  }

  /** What is kept of the conversation. @returns {import("./conversation.js").KeptLane} */
  get kept() {
    const adopted = this.#transcript.querySelector(".adopted") !== null;
    return { messages: this.messages, adopted, turns: this.#turns.map((turn) => turn.kept) };
  }

  /** Show a conversation that was kept. @param {import("./conversation.js").KeptLane} kept */
  restore({ messages, adopted, turns }) {
    this.clear();
    this.messages = messages;
    if (adopted) this.#tellAdopted();
    for (const { mode, prompt, made, scale, status, answer } of turns) {
      this.#add(new Turn(mode, prompt, made, Answer.of(answer), scale, this.#server.experts, this.#reader));
      this.latest.finish(status);
    }
    if (turns.length === 0) return;
    const { tokens } = this.latest.answer;
    this.#hide(tokens.length === 0);
    this.#chart.describe();
    if (tokens.length) this.#choose(this.latest, mostMoved(tokens), false);
    this.#showLegend(this.latest.answer);
    this.#transcript.scrollTop = this.#transcript.scrollHeight;
  }

  /** Forget the conversation. */
  clear() {
    this.messages = [];
    this.#turns = [];
    this.#turn = this.#chosen = null;
    this.#transcript.replaceChildren();
    this.#hide(true);
    this.#fail("");
  }

  /** Begin with another lane's conversation, so that both answer the same question. @param {Lane} other */
  adopt(other) {
    this.messages = [...other.messages];
    if (this.messages.length === 0) return;
    this.#tellAdopted();
  }

  /**
   * Ask, and show the answer as it comes.
   * @param {"chat" | "completion"} mode
   * @param {string} prompt
   * @param {object} sampling
   * @param {(messages: object[]) => object[]} system puts the system prompt before a conversation
   * @param {boolean} remember keep what was said before
   * @param {string} key the API key, or an empty text
   * @param {AbortSignal} signal
   * @returns {Promise<string>} what to announce
   */
  async run(mode, prompt, sampling, system, remember, key, signal) {
    const before = { messages: this.messages, turns: this.#turns, shown: [...this.#transcript.childNodes], turn: this.#turn, chosen: this.#chosen };
    if (!remember) this.clear();
    this.#fail("");
    const asked = [...this.messages, { role: "user", content: prompt }];
    const answer = new Answer(this.setting.value.parameter !== null);
    const turn = new Turn(mode, prompt, this.setting.summary, answer, this.#scale(), this.#server.experts, this.#reader);
    this.#add(turn);
    const update = oncePerFrame(() => this.#update(turn));
    const started = performance.now();
    let first = null;
    let ending = "";
    try {
      const request = { ...this.body(mode, system(asked), sampling), ...extras(mode) };
      for await (const chunk of stream(ROUTES[mode], request, key, signal)) {
        answer.add(chunk);
        if (answer.tokens.length) first ??= performance.now();
        update();
      }
      this.messages = [...asked, { role: "assistant", content: answer.text }];
      if (answer.finish === "length") ending = "Stopped at max tokens.";
    } catch (error) {
      if (error.name === "AbortError") ending = "Stopped by you.";
      else {
        this.#fail(error.message);
        if (answer.tokens.length === 0) {
          this.#restore(before);
          return "";
        }
      }
    }
    this.#finish(turn, speed(answer.tokens.length, started, first ?? started, performance.now()), ending);
    return this.#error.hidden ? `${this.element.getAttribute("aria-label")}: ${answer.text}` : "";
  }

  #tellAdopted() {
    this.#transcript.replaceChildren(element("p", { class: "hint adopted", text: "Continues the conversation in A." }));
  }

  /** What a turn tells of the reader. */
  #reader = {
    choose: (turn, index) => this.#choose(turn, index),
    preview: (turn, index) => this.#preview(turn, index),
  };

  #add(turn) {
    turn.tint(this.#byWeight);
    turn.format(this.#markdown);
    this.#turns = [...this.#turns, turn];
    this.#transcript.append(turn.element);
    this.#open(turn);
  }

  #scale() {
    const { parameter, alpha, alphaMax } = this.setting.value;
    if (parameter === null) return 1;
    if (parameter === "alpha_max") return alphaMax;
    return Math.max(...Object.values(alpha).map(Math.abs), this.setting.preset.alpha_max);
  }

  /** Show again what there was before a run that gave nothing. */
  #restore({ messages, turns, shown, turn, chosen }) {
    this.messages = messages;
    this.#turns = turns;
    this.#transcript.replaceChildren(...shown);
    this.#turn = this.#chosen = null;
    this.#hide(turn === null);
    if (turn !== null) this.#choose(turn, chosen ?? 0, false);
  }

  #open(turn) {
    this.#turn?.mark(null);
    this.#turn = turn;
    this.#chosen = this.#pointed = null;
    this.#hide(true);
    this.#inspector.clear();
    this.#chart.show(turn.answer, turn.scale);
  }

  #update(turn) {
    this.#keepAtEnd(() => {
      turn.update();
      if (turn !== this.#turn) return;
      const { tokens } = turn.answer;
      this.#hide(tokens.length === 0);
      this.#chart.update();
      this.#showLegend(turn.answer);
      // From the first token on, so that the end of the answer moves nothing.
      if (tokens.length && this.#chosen === null && this.#pointed === null) this.#inspect(turn, mostMoved(tokens));
    });
  }

  #hide(hidden) {
    this.#evidence.hidden = this.#inspected.hidden = hidden;
  }

  /** Make a change that takes room, and go on showing the end of the conversation if it was shown before. */
  #keepAtEnd(change) {
    const place = this.#transcript;
    const wasAtEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 40;
    change();
    if (wasAtEnd) place.scrollTop = place.scrollHeight;
  }

  #finish(turn, took, ending) {
    this.#update(turn);
    const { tokens } = turn.answer;
    turn.finish(tokens.length || ending ? `${took} ${ending}`.trim() : "");
    this.#chart.describe();
    if (turn !== this.#turn || this.#chosen !== null || tokens.length === 0) return;
    this.#keepAtEnd(() => this.#choose(turn, mostMoved(tokens), false));
  }

  /** Save what the evidence shows as a file. */
  #download() {
    const { made, answer } = this.#turn;
    const { text, experts, tokens } = answer;
    const blob = new Blob([JSON.stringify({ setting: made, text, experts, tokens }, null, 2)], { type: "application/json" });
    const link = element("a", { href: URL.createObjectURL(blob), download: "trace.json" });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  /** The colours in use, each with the number of tokens that it marks. */
  #showLegend({ tokens, experts }) {
    const marks = tokens.map((token) => mover(token).names);
    const count = (test) => marks.filter(test).length;
    const entries = experts.map((name) => [[name], name, count((names) => names.length === 1 && names[0] === name)]);
    const several = count((names) => names.length > 1);
    if (several) entries.push([experts, "several equally", several]);
    entries.push([[], "large alone", count((names) => names.length === 0)]);
    const items = entries.map(([names, label, number]) => {
      const text = element("span", { text: label });
      return element("li", { class: colourClass(names, this.#server.experts) }, text, " ", element("b", { text: number }));
    });
    const drafted = tokens.filter((token) => token.drafted).length;
    if (drafted) {
      const text = element("span", { text: "drafted ahead" });
      items.push(element("li", { class: "drafted" }, text, " ", element("b", { text: drafted })));
    }
    this.#legend.replaceChildren(...items);
  }

  #choose(turn, index, byReader = true) {
    if (index === null || turn === null) return;
    if (turn !== this.#turn) {
      this.#turn?.mark(null);
      this.#turn = turn;
      this.#chart.show(turn.answer, turn.scale);
      this.#showLegend(turn.answer);
    }
    this.#chosen = index;
    turn.mark(index);
    this.#look(turn, index);
    if (byReader) turn.reveal(index);
  }

  /** Look at a token for as long as the pointer is on it; null goes back to the chosen one. */
  #preview(turn, index) {
    if (turn === null) return;
    this.#pointed = index;
    if (index !== null) this.#look(turn, index);
    else if (this.#chosen !== null) this.#look(this.#turn, this.#chosen);
  }

  #look(turn, index) {
    this.#inspect(turn, index);
    this.#chart.mark(turn === this.#turn ? index : null);
  }

  #inspect(turn, index) {
    const { tokens } = turn.answer;
    this.#inspector.show(tokens[index], index, tokens.length);
  }

  #fail(message) {
    this.#error.textContent = message;
    this.#error.hidden = message === "";
  }
}

/** The token that fusion moved furthest from the large model. */
function mostMoved(tokens) {
  const distance = ({ klFused: [forward] }) => forward ?? 0;
  return tokens.reduce((best, token, i) => (distance(token) > distance(tokens[best]) ? i : best), 0);
}

/** How many tokens came how fast; times in ms. */
function speed(count, started, first, ended) {
  const tokens = `${count} ${count === 1 ? "token" : "tokens"} in ${((ended - started) / 1000).toFixed(1)} s`;
  if (count < 2 || ended - first < SHORTEST_MS) return `${tokens}.`;
  const rate = (1000 * (count - 1)) / (ended - first);
  return `${tokens}: the first after ${((first - started) / 1000).toFixed(2)} s, then ${rate.toFixed(rate < 10 ? 1 : 0)} a second.`;
}
