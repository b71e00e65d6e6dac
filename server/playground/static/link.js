/** A link that carries what is filled in: the prompt, the request's fields and the setting of every lane, never a key. */

const FIELDS = ["#prompt", "#system", "#temperature", "#max-tokens", "#top-p", "#seed", "#stop-strings"];

const $ = (selector) => document.querySelector(selector);

/** @param {"chat" | "completion"} mode @param {import("./request.js").Setting[]} settings those of the lanes */
export function linkTo(mode, settings) {
  const fields = Object.fromEntries(FIELDS.map((selector) => [selector, $(selector).value]));
  const url = new URL(location.href);
  url.hash = encodeURIComponent(JSON.stringify({ mode, fields, settings }));
  return url.href;
}

/**
 * Fill in what this page's address carries.
 * @returns {{mode: string, settings: import("./request.js").Setting[]} | null} null where it carries nothing readable
 */
export function fillFromLink() {
  try {
    const { mode, fields, settings } = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    if (!Array.isArray(settings) || settings.length === 0) return null;
    for (const selector of FIELDS) if (typeof fields?.[selector] === "string") $(selector).value = fields[selector];
    return { mode, settings };
  } catch {
    return null; // no link of ours
  }
}
