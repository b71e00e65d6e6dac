/** One answer as it grows: the chunks of a stream become tokens, each with its text and its trace. */

/**
 * @typedef {object} Token
 * @property {number} id
 * @property {string} text what it adds to the answer; empty for an end mark or a part of a character
 * @property {string} name the token by itself, such as "</s>"
 * @property {number | null} p its probability in the fused distribution
 * @property {Record<string, number | null>} alpha weight of each expert that the request used
 * @property {[number | null, number | null]} klTarget KL(expert || base), KL(base || expert)
 * @property {[number | null, number | null]} klFused KL(fused || large), KL(large || fused)
 * @property {number | null} effect how far fusion moved the distribution here, KL(fused || large) in nats; null where nobody measures it
 * @property {boolean} fallback whether the large model answered alone because a member's logits were not finite
 * @property {boolean} drafted whether a member had said it before the fused model chose it
 * @property {Record<string, {top: {id: number, token: string, p: number}[], p: number | null}>} lens by member, from the
 *   large model to the fusion: its likeliest tokens, and the probability of this one
 */

export class Answer {
  /** @type {Token[]} */
  tokens = [];
  /** Experts that the request used, in the server's order. @type {string[]} */
  experts = [];
  text = "";
  /** What a router chose: the experts that steer, and how likely it took each. @type {{experts: string[], probabilities: Record<string, number>, parts?: Record<string, Record<string, number>>} | null} */
  route = null;
  /** The preset that answered, where the one that was asked for splits. @type {string | null} */
  arm = null;
  finish = "";
  // A chunk's text and its trace need not travel together: the first token's trace comes with the role.
  #texts = [];
  #traces = [];
  #measured;

  /** @param {boolean} measured whether the weighting's effect is measured: one that replaces the large model has none */
  constructor(measured) {
    this.#measured = measured;
  }

  /** An answer that was kept. */
  static of(kept) {
    return Object.assign(new Answer(true), kept);
  }

  /** Take in one chunk of `/v1/chat/completions` or `/v1/completions`. */
  add(chunk) {
    this.arm = chunk.fusion_arm ?? this.arm;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const text = choice.delta ? (choice.delta.content ?? "") : (choice.text ?? "");
    this.text += text;
    this.finish = choice.finish_reason ?? this.finish;
    this.route = choice.fusion_route ?? this.route;
    this.#texts.push(...shareOut(text, spelled(choice.logprobs)));
    if (choice.fusion) this.#traces.push(...this.#read(choice.fusion));
    while (this.#texts.length && this.#traces.length) {
      this.tokens.push({ ...this.#texts.shift(), ...this.#traces.shift() });
    }
  }

  #read(fusion) {
    this.experts = Object.keys(fusion.alpha);
    return fusion.token_ids.map((id, i) => ({
      id,
      alpha: Object.fromEntries(this.experts.map((name) => [name, fusion.alpha[name][i]])),
      klTarget: fusion.kl_target[i],
      klFused: fusion.kl_fused[i],
      effect: this.#measured ? fusion.kl_fused[i][0] : null,
      fallback: fusion.fallback[i],
      drafted: fusion.drafted?.[i] ?? false,
      lens: Object.fromEntries(Object.entries(fusion.lens ?? {}).map(([name, thoughts]) => [name, thoughts[i]])),
    }));
  }
}

/** A chunk's tokens by themselves, from either route's form of logprobs. */
function spelled(logprobs) {
  if (!logprobs) return [];
  const pairs = logprobs.content
    ? logprobs.content.map(({ token, logprob }) => [token, logprob])
    : logprobs.tokens.map((token, i) => [token, logprobs.token_logprobs[i]]);
  return pairs.map(([name, logprob]) => ({ name, p: logprob === null ? null : Math.exp(logprob), text: "" }));
}

/**
 * Give each token of a chunk its part of the chunk's text. By itself a token may read otherwise than in the text: end
 * marks are left out, some tokenizers lose a leading space, and a character may need several tokens.
 */
function shareOut(text, tokens) {
  let rest = text;
  for (const token of tokens.slice(0, -1)) {
    const start = rest.indexOf(token.name);
    if (start < 0 || rest.slice(0, start).trim() !== "") continue;
    token.text = rest.slice(0, start + token.name.length);
    rest = rest.slice(token.text.length);
  }
  if (tokens.length) tokens.at(-1).text = rest;
  return tokens;
}
