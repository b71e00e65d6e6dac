/** Past conversations: kept in this browser alone, listed, opened again, deleted. */

import { read, write } from "./conversation.js";
import { element } from "./dom.js";
import { get, list, MOST, put, remove, removeAll } from "./store.js";

/** Which conversation this tab shows, so that it is there again after a reload; and the link that the page then had. */
const OPEN = "logit-fusion-open";
const LONGEST_TITLE = 200;

export class History {
  #root;
  #list;
  #hint;
  #forget;
  #show;
  /** The id of the conversation that is shown; null for a new one. */
  #open = null;
  #busy = false;

  /**
   * @param {HTMLElement} root
   * @param {(conversation: import("./conversation.js").Conversation, byReader: boolean) => void} show
   */
  constructor(root, show) {
    this.#root = root;
    this.#show = show;
    [this.#list, this.#hint, this.#forget] = ["ul", ".hint", ".forget"].map((selector) => root.querySelector(selector));
    this.#forget.addEventListener("click", () => this.#removeAll());
  }

  /** Show the list, and the conversation that this tab showed before a reload. */
  async start() {
    await this.#try(async () => {
      await this.#draw();
      const { id, hash } = notedOpen();
      // Another link than before is what the reader wants to see.
      if (hash === location.hash && (await list()).some((entry) => entry.id === id)) await this.#reopen(id, false);
    });
  }

  /** No conversation may be opened or deleted while one goes on. */
  busy(busy) {
    this.#busy = busy;
    for (const button of this.#root.querySelectorAll("button")) button.disabled = busy;
  }

  /** What comes next is a new conversation. */
  close() {
    this.#open = null;
    this.noteOpen();
    this.#markOpen();
  }

  /**
   * Keep a conversation as it is now.
   * @param {import("./conversation.js").Conversation} conversation
   * @param {boolean} isNew whether it is another one than that which was shown
   */
  async keep(conversation, isNew) {
    if (isNew || this.#open === null) this.#open = `${Date.now()}-${Math.random().toString(36).slice(2)}`;
    const turns = conversation.lanes.flatMap((lane) => lane.turns);
    const title = (turns[0]?.prompt ?? "").slice(0, LONGEST_TITLE);
    const made = conversation.lanes.map((lane) => lane.turns.at(-1)?.made.split(" · ")[0]).filter(Boolean).join(" and ");
    await this.#try(async () => {
      const text = write(conversation);
      if (text === null) throw new Error("it is too long");
      await put({ id: this.#open, title, made, when: Date.now() }, text);
      this.noteOpen();
      await this.#draw();
    }, "This conversation is not kept");
  }

  /** Remember in this tab what is shown, under the address that the page has now. */
  noteOpen() {
    try {
      if (this.#open === null) sessionStorage.removeItem(OPEN);
      else sessionStorage.setItem(OPEN, JSON.stringify({ id: this.#open, hash: location.hash }));
    } catch {
      // Storage may be switched off; then a reload begins anew.
    }
  }

  async #reopen(id, byReader) {
    await this.#try(async () => {
      const conversation = read(await get(id));
      this.#show(conversation, byReader);
      this.#open = id;
      this.noteOpen();
      this.#markOpen();
      this.#tell();
    }, "This conversation cannot be read again");
  }

  async #remove(id) {
    await this.#try(async () => {
      const place = [...this.#list.children].findIndex((item) => item.dataset.id === id);
      await remove(id);
      if (id === this.#open) this.close();
      await this.#draw();
      const next = this.#list.children[Math.min(place, this.#list.children.length - 1)];
      (next?.querySelector(".delete") ?? this.#root.querySelector("summary")).focus();
    }, "It is not deleted");
  }

  async #removeAll() {
    if (!confirm("Delete all conversations that this browser keeps?")) return;
    await this.#try(async () => {
      await removeAll();
      this.close();
      await this.#draw();
      this.#root.querySelector("summary").focus();
    }, "They are not deleted");
  }

  async #draw() {
    const entries = await list();
    this.#list.replaceChildren(...entries.map((entry) => this.#item(entry)));
    this.#forget.hidden = entries.length === 0;
    this.#root.querySelector(".count").textContent = entries.length || "";
    this.#tell();
    this.#markOpen();
    this.busy(this.#busy);
  }

  #tell() {
    const start = this.#list.children.length ? "" : "Nothing yet. ";
    this.#hint.textContent = `${start}Kept in this browser alone, the latest ${MOST}.`;
  }

  #item({ id, title, made, when }) {
    const time = new Date(when).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const open = element("button", { type: "button", class: "open quiet", title }, element("span", { class: "title", text: title }), element("span", { class: "hint", text: `${made} · ${time}` }));
    const cross = element("button", { type: "button", class: "delete quiet", "aria-label": `Delete: ${title}`, title: "Delete", text: "×" });
    open.addEventListener("click", () => this.#reopen(id, true));
    cross.addEventListener("click", () => this.#remove(id));
    return element("li", { "data-id": id }, open, cross);
  }

  #markOpen() {
    for (const item of this.#list.children) {
      const open = item.querySelector(".open");
      if (item.dataset.id === this.#open) open.setAttribute("aria-current", "true");
      else open.removeAttribute("aria-current");
    }
  }

  /** Do what may fail for reasons of the browser's, and say so where it does. */
  async #try(act, failure = "This browser keeps no history here") {
    try {
      await act();
    } catch (error) {
      this.#hint.textContent = `${failure}: ${error.message}.`;
    }
  }
}

/** What `noteOpen` remembered. */
function notedOpen() {
  try {
    return JSON.parse(sessionStorage.getItem(OPEN)) ?? {};
  } catch {
    return {};
  }
}
