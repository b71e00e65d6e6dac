/** A conversation as it is kept: as text, and read again with care, for a browser's storage holds anything. */

/**
 * @typedef {object} KeptLane
 * @property {{role: string, content: string}[]} messages
 * @property {boolean} adopted whether it began with the other lane's conversation
 * @property {object[]} turns as `Turn.kept` has them
 *
 * @typedef {object} Conversation
 * @property {import("./link.js").Filled} filled what was filled in
 * @property {KeptLane[]} lanes
 */

/** One that is longer is kept without what each member thought likely, which is most of it. */
const LONGEST = 5_000_000;

/** @param {Conversation} conversation @returns {string | null} null where it is too long to be kept */
export function write(conversation) {
  const whole = JSON.stringify(conversation);
  if (whole.length <= LONGEST) return whole;
  const shorter = JSON.stringify(conversation, (name, value) => (name === "lens" ? {} : value));
  return shorter.length <= LONGEST ? shorter : null;
}

/** @param {string} text @returns {Conversation} @throws {Error} where it is none that this page can show */
export function read(text) {
  try {
    const conversation = JSON.parse(text);
    check(conversation);
    return conversation;
  } catch {
    throw new Error("what is stored is damaged");
  }
}

function check({ filled, lanes }) {
  must(isObject(filled.fields) && Array.isArray(filled.settings));
  must(Array.isArray(lanes) && [1, 2].includes(lanes.length) && lanes.length === filled.settings.length);
  for (const { messages, turns } of lanes) {
    must(Array.isArray(messages) && messages.every(({ role, content }) => areTexts(role, content)));
    must(Array.isArray(turns));
    turns.forEach(checkTurn);
  }
}

function checkTurn({ mode, prompt, made, scale, status, answer }) {
  must(["chat", "completion"].includes(mode) && areTexts(prompt, made, status) && Number.isFinite(scale));
  const { text, experts, tokens, route, finish } = answer;
  must(areTexts(text, finish) && Array.isArray(experts) && areTexts(...experts) && Array.isArray(tokens));
  must(route === null || (areTexts(...route.experts) && areNumbers(...Object.values(route.probabilities))));
  for (const shares of Object.values(route?.parts ?? {})) must(isObject(shares) && areNumbers(...Object.values(shares)));
  tokens.forEach(checkToken);
}

function checkToken({ id, text, name, alpha, klTarget, klFused, effect, lens }) {
  must(Number.isInteger(id) && areTexts(text, name) && areNumbersOrNull(effect, ...klTarget, ...klFused));
  must(isObject(alpha) && areNumbersOrNull(...Object.values(alpha)) && isObject(lens));
  for (const { top, p } of Object.values(lens)) {
    must(areNumbersOrNull(p) && top.every((entry) => areTexts(entry.token) && areNumbers(entry.p)));
  }
}

function must(condition) {
  if (!condition) throw new TypeError("not a conversation of this page");
}

function isObject(value) {
  return typeof value === "object" && value !== null;
}

function areTexts(...values) {
  return values.every((value) => typeof value === "string");
}

function areNumbers(...values) {
  return values.every(Number.isFinite);
}

function areNumbersOrNull(...values) {
  return values.every((value) => value === null || Number.isFinite(value));
}
