/** Small helpers for building the page; text is only ever set as text. */

/**
 * Make an element.
 * @param {string} tag
 * @param {Record<string, string | boolean | number | null | undefined>} attributes `text` sets the content; null, undefined and false leave an attribute out
 * @param {...(Node | string)} children
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = String(value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children);
  return made;
}

/** As `element`, for SVG. */
export function svgElement(tag, attributes = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  return made;
}

/** A drawing may take one part in so many of the time: the server may be computing on the same cores. */
const SHARE = 4;

/** Call `draw` before the next frame that there is time for, however often it is asked for. */
export function oncePerFrame(draw) {
  let asked = false;
  let free = 0;
  const frame = () => {
    asked = false;
    const started = performance.now();
    draw();
    // Runs when the frame is laid out and painted, which takes longer than the drawing itself.
    setTimeout(() => {
      const ended = performance.now();
      free = ended + (SHARE - 1) * (ended - started);
    });
  };
  return () => {
    if (asked) return;
    asked = true;
    setTimeout(() => requestAnimationFrame(frame), Math.max(0, free - performance.now()));
  };
}

/** A probability as a reader takes it in: 41 %, 0.3 %, < 0.1 %. */
export function percent(p) {
  if (p < 0.001) return "< 0.1 %";
  return `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)} %`;
}

/** A weight or a divergence with two decimals, "?" where the server had none. */
export function decimal(value) {
  return value === null || value === undefined ? "?" : value.toFixed(2);
}
