/** What is sent: the body of a request from the form's values. */

/**
 * @typedef {object} Server what the server has, by name
 * @property {Record<string, Preset>} presets
 * @property {Record<string, Weighting>} weightings
 * @property {string[]} experts
 * @property {string[]} comparing experts whose comparison may read a prompt of its own
 *
 * @typedef {object} Weighting as `/v1/fusion/experts` describes it
 * @property {string} name
 * @property {"none" | "one" | "any"} experts how many it takes
 * @property {"alpha" | "alpha_max" | null} parameter
 * @property {string} summary
 * @property {string} description
 *
 * @typedef {object} Preset as `/v1/fusion/experts` lists it
 * @property {string[]} experts
 * @property {string} weighting
 * @property {number | Record<string, number> | null} alpha
 * @property {number} alpha_max
 * @property {Record<string, number>} [split] presets that answer in its place, and their shares; the rest is the largest's
 *
 * @typedef {object} Setting how one side is steered
 * @property {string} preset
 * @property {string} weighting
 * @property {"alpha" | "alpha_max" | null} parameter what sets its weights
 * @property {string[]} experts
 * @property {Record<string, number>} alpha where that is the parameter
 * @property {number} alphaMax
 * @property {Record<string, string>} against what experts are compared under: a system prompt, or in completion a text
 */

export const ROUTES = { chat: "v1/chat/completions", completion: "v1/completions" };

/**
 * The `fusion` field: only what differs from the preset.
 * @param {Setting} setting
 * @param {Preset} preset
 * @param {(text: string) => any} compared the prompt that a text stands for, where an expert is compared under it
 */
export function fusionField(setting, preset, compared) {
  const field = {};
  if (setting.weighting !== preset.weighting) field.weighting = setting.weighting;
  if (setting.weighting === "none") return field;
  if (!sameNames(setting.experts, preset.experts)) field.experts = setting.experts;
  if (setting.parameter === "alpha") {
    const asked = setting.experts.map((name) => setting.alpha[name]);
    const given = setting.experts.map((name) => alphaOf(preset, name));
    if (asked.some((value, i) => value !== given[i])) {
      field.alpha = new Set(asked).size === 1 ? asked[0] : setting.alpha;
    }
  } else if (setting.parameter === "alpha_max" && setting.alphaMax !== preset.alpha_max) {
    field.alpha_max = setting.alphaMax;
  }
  const against = setting.experts.filter((name) => setting.against[name]);
  if (against.length) {
    field.prompts = Object.fromEntries(against.map((name) => [name, { against: compared(setting.against[name]) }]));
  }
  return field;
}

/** The fixed weight that a preset gives an expert; undefined if it gives none. @param {Preset} preset */
export function alphaOf(preset, name) {
  return typeof preset.alpha === "number" ? preset.alpha : preset.alpha?.[name];
}

/**
 * The request as a client would write it.
 * @param {"chat" | "completion"} mode
 * @param {{role: string, content: string}[]} messages the conversation; `completion` takes the last one's text
 */
export function body(mode, messages, setting, preset, sampling) {
  const others = messages.filter(({ role }) => role !== "system");
  const compared = (text) => (mode === "chat" ? [{ role: "system", content: text }, ...others] : text);
  return {
    model: setting.preset,
    ...(mode === "chat" ? { messages } : { prompt: messages.at(-1).content }),
    ...sampling,
    stream: true,
    fusion: { ...fusionField(setting, preset, compared), trace: "full" },
  };
}

/** What the page asks for beside it: each token's own text and probability, and the count of tokens. */
export function extras(mode) {
  const logprobs = mode === "chat" ? { logprobs: true, top_logprobs: 0 } : { logprobs: 0 };
  return { ...logprobs, stream_options: { include_usage: true } };
}

function sameNames(some, others) {
  return some.length === others.length && some.every((name) => others.includes(name));
}
