/** The controls at the head of a lane: preset, weighting, experts, and their weights. */

import { element } from "./dom.js";
import { colourClass } from "./experts.js";
import { alphaOf } from "./request.js";

const DEFAULT_ALPHA = 1;

export class SettingControls {
  #server;
  #changed;
  #preset;
  #weighting;
  #alphaMax;
  #alphaMaxLabel;
  #experts;
  #prompts;

  /**
   * @param {Element} root
   * @param {import("./request.js").Server} server
   * @param {() => void} changed called after every change
   */
  constructor(root, server, changed) {
    this.#server = server;
    this.#changed = changed;
    this.#preset = root.querySelector(".preset");
    this.#weighting = root.querySelector(".weighting");
    this.#alphaMax = root.querySelector(".alpha-max");
    this.#alphaMaxLabel = root.querySelector(".alpha-max-label");
    this.#experts = root.querySelector(".experts");
    this.#prompts = root.querySelector(".prompts");
    this.#preset.append(...Object.keys(server.presets).map((name) => element("option", { value: name, text: name })));
    this.#weighting.append(
      ...Object.values(server.weightings).map(({ name, summary, description }) => element("option", { value: name, text: `${name}: ${summary}`, title: description })),
    );
    this.#experts.append(...server.experts.map((name) => this.#chip(name)));
    this.#prompts.append(...server.comparing.map((name) => this.#prompt(name)));
    this.#preset.addEventListener("change", () => this.choose(this.#preset.value));
    this.#weighting.addEventListener("change", () => this.#settle());
    this.#alphaMax.addEventListener("input", () => this.#changed());
  }

  /** Take all values from a preset, then those given. @param {Partial<import("./request.js").Setting>} values */
  choose(name, values = {}) {
    const preset = this.#server.presets[name];
    this.#preset.value = name;
    this.#weighting.value = values.weighting ?? preset.weighting;
    set(this.#alphaMax, preset.alpha_max, values.alphaMax);
    for (const chip of this.#chips()) {
      chip.used.checked = (values.experts ?? preset.experts).includes(chip.name);
      set(chip.alpha, alphaOf(preset, chip.name) ?? DEFAULT_ALPHA, values.alpha?.[chip.name]);
    }
    for (const [name, input] of this.#promptInputs()) input.value = values.against?.[name] ?? "";
    this.#settle();
  }

  /** @returns {import("./request.js").Setting} */
  get value() {
    const { name, experts, parameter } = this.#chosen;
    const used = experts === "none" ? [] : this.#chips().filter((chip) => chip.used.checked);
    return {
      preset: this.#preset.value,
      weighting: name,
      parameter,
      experts: used.map((chip) => chip.name),
      alpha: Object.fromEntries(used.map((chip) => [chip.name, numberIn(chip.alpha)])),
      alphaMax: numberIn(this.#alphaMax),
      against: Object.fromEntries(this.#promptInputs().map(([name, input]) => [name, input.value.trim()])),
    };
  }

  /** The setting in words, for whoever reads the answer later. */
  get summary() {
    const { preset, weighting, parameter, experts, alpha, alphaMax, against } = this.value;
    const named = experts.map((name) => (parameter === "alpha" ? `${name} ${alpha[name]}` : name));
    const most = parameter === "alpha_max" ? `alpha up to ${alphaMax}` : "";
    const compared = experts.filter((name) => against[name]).map((name) => `${name} against “${against[name]}”`);
    return [preset, weighting, named.join(", "), most, ...compared].filter(Boolean).join(" · ");
  }

  /** @returns {import("./request.js").Preset} */
  get preset() {
    return this.#server.presets[this.#preset.value];
  }

  /** The chosen weighting, as the server describes it. */
  get #chosen() {
    return this.#server.weightings[this.#weighting.value];
  }

  /** Show what the weighting uses, and keep its number of experts right. */
  #settle(latest = null) {
    const { experts, parameter } = this.#chosen;
    const chips = this.#chips();
    if (experts !== "none" && !chips.some((chip) => chip.used.checked) && latest === null && chips.length) {
      chips[0].used.checked = true;
    }
    if (experts === "one") {
      const kept = chips.find((chip) => chip.name === latest) ?? chips.find((chip) => chip.used.checked);
      for (const chip of chips) chip.used.checked = chip === kept;
    }
    this.#experts.disabled = experts === "none";
    for (const chip of chips) chip.alpha.hidden = parameter !== "alpha" || !chip.used.checked;
    this.#alphaMaxLabel.hidden = parameter !== "alpha_max";
    const used = chips.filter((chip) => chip.used.checked && experts !== "none").map((chip) => chip.name);
    for (const [name, input] of this.#promptInputs()) input.parentElement.hidden = !used.includes(name);
    this.#prompts.hidden = !this.#server.comparing.some((name) => used.includes(name));
    this.#changed();
  }

  #chip(name) {
    const used = element("input", { type: "checkbox", value: name, autocomplete: "off" });
    const alpha = element("input", { type: "number", step: "any", min: -100, max: 100, "aria-label": `Alpha of ${name}`, autocomplete: "off" });
    used.addEventListener("change", () => this.#settle(name));
    alpha.addEventListener("input", () => this.#changed());
    const label = element("label", {}, used, element("span", { text: name }));
    return element("span", { class: `chip ${colourClass([name], this.#server.experts)}` }, label, alpha);
  }

  #prompt(name) {
    const input = element("input", { type: "text", placeholder: "the same as the answer", autocomplete: "off", "data-expert": name });
    input.addEventListener("input", () => this.#changed());
    return element("label", { class: colourClass([name], this.#server.experts) }, element("span", { text: `${name} against` }), input);
  }

  #promptInputs() {
    return [...this.#prompts.querySelectorAll("input")].map((input) => [input.dataset.expert, input]);
  }

  #chips() {
    return [...this.#experts.querySelectorAll(".chip")].map((chip) => {
      const [used, alpha] = chip.querySelectorAll("input");
      return { name: used.value, used, alpha };
    });
  }
}

/** Put a number into its field, or the preset's, which also holds where the field is left empty. */
function set(input, presets, value = presets) {
  input.placeholder = presets;
  input.value = value;
  numberIn(input);
}

/** A field's number; the preset's where it holds none that is allowed, which the field then shows. */
function numberIn(input) {
  const wrong = input.validity.badInput || !input.validity.valid;
  if (wrong) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
  return wrong || input.value === "" ? Number(input.placeholder) : input.valueAsNumber;
}
