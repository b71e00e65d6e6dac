/** What is filled in: the prompt, the request's fields and the setting of every lane, never a key; and a link that carries it. */

const FIELDS = ["#prompt", "#system", "#temperature", "#max-tokens", "#top-p", "#seed", "#stop-strings", "#remember", "#by-weight", "#markdown"];

const $ = (selector) => document.querySelector(selector);

/**
 * @typedef {object} Filled
 * @property {"chat" | "completion"} mode
 * @property {Record<string, string | boolean>} fields
 * @property {import("./request.js").Setting[]} settings those of the lanes
 */

/** @returns {Filled} */
export function filledIn(mode, settings) {
  const value = (input) => (input.type === "checkbox" ? input.checked : input.value);
  return { mode, fields: Object.fromEntries(FIELDS.map((selector) => [selector, value($(selector))])), settings };
}

/** Put values into the page's fields; what is missing or of another kind leaves a field as it is. */
export function fill(fields) {
  for (const selector of FIELDS) {
    const [input, value] = [$(selector), fields?.[selector]];
    if (input.type === "checkbox" && typeof value === "boolean") input.checked = value;
    if (input.type !== "checkbox" && typeof value === "string") input.value = value;
  }
}

/** @param {Filled} filled */
export function linkTo(filled) {
  const url = new URL(location.href);
  url.hash = encodeURIComponent(JSON.stringify(filled));
  return url.href;
}

/** What this page's address carries; null where that is nothing readable. @returns {Filled | null} */
export function fromLink() {
  try {
    const filled = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    return Array.isArray(filled.settings) && filled.settings.length ? filled : null;
  } catch {
    return null; // no link of ours
  }
}
