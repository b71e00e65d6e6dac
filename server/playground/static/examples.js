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
  const large = Object.keys(server.presets).find((name) => server.presets[name].weighting === "none");
  if (large) shown.push({ ...shown.find(({ expert }) => expert === "text") ?? shown[0], compareWith: large });
  return shown;
}

/** The preset that this expert steers by itself. */
function presetOf(server, expert) {
  const names = Object.keys(server.presets);
  return names.find((name) => server.presets[name].experts.join() === expert && server.presets[name].weighting === "kl") ?? null;
}
