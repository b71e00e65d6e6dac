/** Who moved a token: the expert with the largest weight, and the colour that stands for it. */

const COLOURS = 7;

/** Weights that differ by less than this share one token. */
const EQUAL = 1e-6;

/** A fused distribution that lies closer to the large model's, in nats, is as good as the same. */
const UNMOVED = 1e-3;

/**
 * The expert that moved a token most.
 * @param {import("./answer.js").Token} token
 * @returns {{names: string[], alpha: number}} several names if their weights are equal, none if no expert moved it
 */
export function mover({ alpha, effect }) {
  if (effect !== null && effect < UNMOVED) return { names: [], alpha: 0 };
  const weights = Object.entries(alpha).map(([name, value]) => [name, value ?? 0]);
  const largest = Math.max(0, ...weights.map(([, value]) => Math.abs(value)));
  if (largest < EQUAL) return { names: [], alpha: 0 };
  const names = weights.filter(([, value]) => largest - Math.abs(value) < EQUAL);
  return { names: names.map(([name]) => name), alpha: names[0][1] };
}

/**
 * How strongly a token is tinted, from 0 to 1: by how far it was moved, or by its mover's weight.
 * @param {import("./answer.js").Token} token
 * @param {number} scale the weight that is shown at full strength
 * @param {boolean} byWeight
 */
export function strength(token, scale, byWeight) {
  // 1 nat is a tint of 0.63, 3 nats one of 0.95.
  if (token.effect !== null && !byWeight) return 1 - Math.exp(-token.effect);
  return Math.min(1, Math.abs(mover(token).alpha) / scale);
}

/**
 * The class that gives an element the colour of an expert; the style sheet has the palette.
 * Past the palette's end the colours come again, with a dotted line.
 * @param {string[]} names who moved the token
 * @param {string[]} all the server's experts, in order
 */
export function colourClass(names, all) {
  if (names.length === 0) return "by-large";
  if (names.length > 1) return "by-several";
  const index = Math.max(0, all.indexOf(names[0]));
  return `by-expert hue-${index % COLOURS}${index >= COLOURS ? " again" : ""}`;
}

/** "math", "math and text", "math, facts and text". */
export function enumerate(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}
