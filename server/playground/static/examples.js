/** What to ask first: questions for experts of known names, and some for any model. */

/** What the code asks as long as nothing is typed. */
export const FIRST_QUESTION = "What is the two-letter code of Norway?";

const FOR_EXPERTS = {
  facts: ["Which country is Ilirska Bistrica in?", "What is the two-letter code of Norway?"],
  text: ["Extract name, count, item and city: In Sydney, Liam bought 28 tickets.", "What is the last word of: goat nose milk"],
  math: ["Adam buys 6 packs of pens with 3 pens in each pack. Adam gives 5 pens to Emma. How many pens does Adam have left?"],
};

const FOR_ANY = [
  "Tom has 3 apples and buys 5 more. How many apples does he have?",
  "Explain in two sentences why the sky is blue.",
  "Write a Python function that says whether a number is prime.",
];

/**
 * @param {{presets: Record<string, import("./request.js").Preset>, experts: string[]}} server
 * @returns {{prompt: string, expert: string, preset: string | null, compareWith: string | null}[]}
 */
export function examples(server) {
  const known = Object.keys(FOR_EXPERTS).filter((name) => server.experts.includes(name));
  const found = known.flatMap((expert) => {
    const preset = presetOf(server, expert);
    return FOR_EXPERTS[expert].map((prompt) => ({ prompt, expert, preset, compareWith: null }));
  });
  const shown = found.length ? found : FOR_ANY.map((prompt) => ({ prompt, expert: "", preset: null, compareWith: null }));
  const large = largeAlone(server);
  if (large) shown.push({ ...shown.find(({ expert }) => expert === "text") ?? shown[0], compareWith: large });
  return shown;
}

/** The preset with which the large model answers by itself, always. */
export function largeAlone({ presets }) {
  return Object.keys(presets).find((name) => presets[name].weighting === "none" && !presets[name].split);
}

/** The preset that this expert steers by itself. */
function presetOf(server, expert) {
  const names = Object.keys(server.presets).filter((name) => !server.presets[name].split);
  return names.find((name) => server.presets[name].experts.join() === expert && server.presets[name].weighting === "kl") ?? null;
}
