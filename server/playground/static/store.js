/** Keeps texts in this browser (IndexedDB): the latest ones, with an entry each for a list of them. */

const NAME = "logit-fusion";
export const MOST = 50;
/** Of all texts together. */
const MOST_CHARACTERS = 50_000_000;

/**
 * @typedef {object} Entry
 * @property {string} id
 * @property {string} title
 * @property {string} made
 * @property {number} when in ms since 1970
 * @property {number} size of the text, in characters
 */

/** @returns {Promise<Entry[]>} the latest first */
export async function list() {
  const entries = await inStores("readonly", ({ entries }) => entries.getAll());
  return entries.filter(isEntry).sort((a, b) => b.when - a.when);
}

/** @returns {Promise<string>} */
export function get(id) {
  return inStores("readonly", ({ texts }) => texts.get(id));
}

/** Keep a text under its entry's id, and no more than there is room for. @param {Omit<Entry, "size">} entry @param {string} text */
export async function put(entry, text) {
  await inStores("readwrite", ({ entries, texts }) => {
    texts.put(text, entry.id);
    return entries.put({ ...entry, size: text.length });
  });
  let size = 0;
  for (const [i, { id, size: own }] of (await list()).entries()) {
    size += own;
    if (i > 0 && (i >= MOST || size > MOST_CHARACTERS)) await remove(id);
  }
}

export function remove(id) {
  return inStores("readwrite", ({ entries, texts }) => {
    texts.delete(id);
    return entries.delete(id);
  });
}

export function removeAll() {
  return inStores("readwrite", ({ entries, texts }) => {
    texts.clear();
    return entries.clear();
  });
}

function isEntry({ id, title, made, when, size }) {
  return [id, title, made].every((value) => typeof value === "string") && [when, size].every(Number.isFinite);
}

/** Do something in one transaction, and return what its last request gave. */
async function inStores(mode, act) {
  const database = await open();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(["entries", "texts"], mode);
      const request = act({ entries: transaction.objectStore("entries"), texts: transaction.objectStore("texts") });
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

function open() {
  return new Promise((resolve, reject) => {
    if (!window.indexedDB) throw new Error("it has no storage");
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("entries", { keyPath: "id" });
      request.result.createObjectStore("texts");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = request.onblocked = () => reject(request.error ?? new Error("another page holds the storage"));
  });
}
