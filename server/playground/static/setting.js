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
    this.#preset.append(...Object.keys(server.presets).map((name) => element("option", { value: name, text: name })));
    this.#weighting.append(
      ...Object.values(server.weightings).map(({ name, summary, description }) => element("option", { value: name, text: `${name}: ${summary}`, title: description })),
    );
    this.#experts.append(...server.experts.map((name) => this.#chip(name)));
    
    this.#preset.addEventListener("change", () => this.choose(this.#preset.value));
    this.#weighting.addEventListener("change", () => this.#settle());
    this.#alphaMax.addEventListener("input", () => this.#changed());
  }

  /** Take all values from a preset, then those given. @param {Partial<import("./request.js").Setting>} values */
  choose(name, values = {}) {
    const preset = this.#server.presets[name];
    this.#preset.value = name;
    this.#weighting.value = values.weighting ?? preset.weighting;
    this.#alphaMax.value = values.alphaMax ?? preset.alpha_max;
    for (const chip of this.#chips()) {
      chip.used.checked = (values.experts ?? preset.experts).includes(chip.name);
      chip.alpha.value = alphaOf(preset, chip.name) ?? DEFAULT_ALPHA;
    }
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
      alpha: Object.fromEntries(used.map((chip) => [chip.name, chip.alpha.valueAsNumber])),
      alphaMax: this.#alphaMax.valueAsNumber,
    };
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

  #chips() {
    return [...this.#experts.querySelectorAll(".chip")].map((chip) => {
      const [used, alpha] = chip.querySelectorAll("input");
      return { name: used.value, used, alpha };
    });
  }
}
