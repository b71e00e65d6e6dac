/** The page: one or two lanes, a prompt that both are asked, and the same call in code. */

import { address, getJson } from "./api.js";
import { curlCall, pythonCall } from "./calls.js";
import { element } from "./dom.js";
import { examples, FIRST_QUESTION, largeAlone } from "./examples.js";
import { colourClass } from "./experts.js";
import { History } from "./history.js";
import { Lane } from "./lane.js";
import { fill, filledIn, fromLink, linkTo } from "./link.js";
import { ROUTES } from "./request.js";
import { setUpTheme } from "./theme.js";

const $ = (selector) => document.querySelector(selector);
const radio = (name) => $(`input[name="${name}"]:checked`).value;

/** What the server has for this key, in order; null until it answered. @type {import("./request.js").Server | null} */
let server = null;
/** @type {Lane[]} */
let lanes = [];
/** @type {AbortController | null} */
let running = null;
const past = new History($("#history-panel"), showConversation);

async function connect() {
  const key = $("#key").value;
  try {
    const [models, members] = await Promise.all([getJson("v1/models", key), getJson("v1/fusion/experts", key)]);
    const names = models.data.map((model) => model.id).filter((name) => name in members.presets);
    const experts = members.members.filter((member) => member.role === "expert");
    server = {
      presets: Object.fromEntries(names.map((name) => [name, members.presets[name]])),
      weightings: Object.fromEntries(members.weightings.map((weighting) => [weighting.name, weighting])),
      experts: experts.map((member) => member.name),
      comparing: experts.filter((member) => member.own_prompts.includes("against")).map((member) => member.name),
    };
    showMembers(members.members);
    notice("");
  } catch (error) {
    notice(error.message);
    if (error.status === 401) $("#key").focus();
    return;
  }
  const first = new Lane(server, "A", showCode);
  lanes = [first];
  first.setting.choose(mostExperts(server.presets));
  showExamples();
  arrange();
  const carried = fromLink();
  if (carried !== null) apply(carried);
  await past.start();
}

/** Take over what was filled in elsewhere, as far as this server and this key have it. @param {import("./link.js").Filled} filled */
function apply({ mode, fields, settings }) {
  fill(fields);
  $(`input[name="mode"][value="${mode === "completion" ? "completion" : "chat"}"]`).checked = true;
  setCompare(settings.length > 1);
  for (const [i, lane] of lanes.entries()) {
    const setting = settings[i];
    const known = setting?.preset in server.presets && setting.weighting in server.weightings;
    if (known) lane.setting.choose(setting.preset, { ...setting, experts: [setting.experts].flat() });
  }
  showViews();
  showMode();
}

/** Show a conversation that was kept, to go on with it. @param {import("./conversation.js").Conversation} conversation */
function showConversation({ filled, lanes: kept }, byReader) {
  apply(filled);
  for (const [i, lane] of lanes.entries()) lane.restore(kept[i]);
  $("#welcome").hidden = lanes.some((lane) => lane.latest !== null);
  if (byReader) {
    $("#prompt").value = "";
    $("#remember").checked = true;
    $("#prompt").focus({ preventScroll: true });
    $(".turn:last-child")?.scrollIntoView({ block: "nearest" });
  }
  showCode();
}

/** The preset that knows most: of those with the most experts, the first. */
function mostExperts(presets) {
  const names = Object.keys(presets);
  return names.reduce((best, name) => (presets[name].experts.length > presets[best].experts.length ? name : best), names[0]);
}

function showMembers(members) {
  const size = (count) => Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(count);
  const text = members.map(({ name, parameters }) => `${name} ${size(parameters)}`).join(" · ");
  $("#members").textContent = text;
}

function showExamples() {
  const items = examples(server).map((example) => {
    const label = element("span", { class: "label", text: example.compareWith ? "side by side with the large model alone" : example.expert });
    const button = element("button", { type: "button", class: example.expert ? colourClass([example.expert], server.experts) : "" });
    button.append(...(label.textContent ? [label] : []), element("span", { text: example.prompt }));
    button.addEventListener("click", () => tryOut(example));
    return element("li", {}, button);
  });
  $("#examples").replaceChildren(...items);
}

function tryOut({ prompt, preset, compareWith }) {
  $("#prompt").value = prompt;
  if (preset) lanes[0].setting.choose(preset);
  if (compareWith) {
    setCompare(true);
    lanes[1].setting.choose(compareWith);
  }
  $("#composer").requestSubmit();
}

function setCompare(on) {
  $("#compare").checked = on;
  if (on === lanes.length > 1) return;
  if (on) {
    const second = new Lane(server, "B", showCode);
    second.setting.choose(largeAlone(server) ?? lanes[0].setting.value.preset);
    second.adopt(lanes[0]);
    lanes.push(second);
    showViews();
  } else {
    lanes.pop();
    $('input[name="code-side"][value="0"]').checked = true;
  }
  arrange();
}

/** How tokens are tinted, and whether text is formatted. */
function showViews() {
  for (const lane of lanes) {
    lane.tint($("#by-weight").checked);
    lane.format($("#markdown").checked);
  }
}

function arrange() {
  $("#lanes").replaceChildren(...lanes.map((lane) => lane.element));
  $("#lanes").classList.toggle("two", lanes.length > 1);
  $("#code-side").hidden = lanes.length < 2;
  showCode();
}

/** The sampling parameters that are filled in; the server has defaults for the others. */
function sampling() {
  const fields = { max_tokens: "#max-tokens", temperature: "#temperature", top_p: "#top-p", seed: "#seed" };
  const values = Object.entries(fields).map(([name, selector]) => [name, $(selector).valueAsNumber]);
  const stop = $("#stop-strings").value.split("\n").filter((line) => line !== "");
  return { ...Object.fromEntries(values.filter(([, value]) => !Number.isNaN(value))), ...(stop.length ? { stop } : {}) };
}

/** A conversation, with the system prompt before it if there is one. */
function withSystem(mode, messages) {
  const content = $("#system").value;
  return mode === "chat" && content.trim() !== "" ? [{ role: "system", content }, ...messages] : messages;
}

function code() {
  const mode = radio("mode");
  const lane = lanes[Number(radio("code-side"))] ?? lanes[0];
  const prompt = { role: "user", content: $("#prompt").value || FIRST_QUESTION };
  const asked = [...($("#remember").checked ? lane.messages : []), prompt];
  const body = lane.body(mode, withSystem(mode, asked), sampling());
  const withKey = $("#key").value !== "";
  if (radio("language") === "curl") return curlCall(address(ROUTES[mode]), body, withKey);
  return pythonCall(mode, address("v1"), body, withKey);
}

function showCode() {
  if (lanes.length) $("#code").textContent = code();
}

async function copyCode() {
  try {
    await navigator.clipboard.writeText($("#code").textContent);
    say($("#copy"), "Copied");
  } catch {
    // Pages from plain http on another host may not write to the clipboard: the reader can.
    getSelection().selectAllChildren($("#code"));
    say($("#copy"), "Selected");
  }
}

function filled() {
  return filledIn(radio("mode"), lanes.map((lane) => lane.setting.value));
}

async function copyLink() {
  const link = linkTo(filled());
  history.replaceState(null, "", link);
  past.noteOpen();
  try {
    await navigator.clipboard.writeText(link);
    say($("#link"), "Copied");
  } catch {
    say($("#link"), "In the address bar");
  }
}

/** Show on a button, for a moment, what it did. */
function say(button, done) {
  const name = button.dataset.name ?? button.textContent;
  button.dataset.name = name;
  button.textContent = done;
  announce(done);
  setTimeout(() => (button.textContent = name), 2000);
}

async function run() {
  const prompt = $("#prompt").value;
  if (running || lanes.length === 0 || prompt.trim() === "") return;
  running = new AbortController();
  const mode = radio("mode");
  const remember = mode === "chat" && $("#remember").checked;
  showRunning(true);
  $("#welcome").hidden = true;
  if (remember) $("#prompt").value = "";
  const system = (messages) => withSystem(mode, messages);
  const options = [mode, prompt, sampling(), system, remember, $("#key").value, running.signal];
  const before = lanes.map((lane) => lane.latest);
  const isNew = !remember || before.every((turn) => turn === null);
  const answers = lanes.map((lane) => lane.run(...options));
  $(".turn:last-child").scrollIntoView({ block: "nearest" });
  const said = await Promise.all(answers);
  running = null;
  showRunning(false);
  announce(said.filter(Boolean).join(" "));
  showCode();
  const changed = lanes.some((lane, i) => lane.latest !== null && lane.latest !== before[i]);
  if (changed) past.keep({ filled: filled(), lanes: lanes.map((lane) => lane.kept) }, isNew);
}

function showRunning(on) {
  // Whoever started by keyboard can stop by keyboard.
  const focused = document.activeElement === $("#run") || document.activeElement === $("#stop");
  $("#run").hidden = on;
  $("#stop").hidden = !on;
  $("#compare").disabled = on;
  past.busy(on);
  if (focused) $(on ? "#stop" : "#run").focus();
}

function clear() {
  running?.abort();
  for (const lane of lanes) lane.clear();
  past.close();
  $("#welcome").hidden = false;
  $("#prompt").value = "";
  $("#prompt").focus();
  showCode();
}

function showMode() {
  const chat = radio("mode") === "chat";
  $("#prompt-label").textContent = chat ? "Message" : "Text to continue";
  $("#remember-label").hidden = $("#markdown-label").hidden = !chat;
  $("#system-label").hidden = !chat;
  showCode();
}

function notice(message) {
  $("#notice").textContent = message;
  $("#notice").hidden = message === "";
}

function announce(message) {
  $("#announcer").textContent = message;
}

function setUp() {
  setUpTheme($("#theme"));
  if (matchMedia("(max-width: 899px)").matches) {
    for (const panel of document.querySelectorAll("aside .panel")) panel.open = false;
  }
  // Where the page scrolls, the form stays at its lower end, and nothing that is looked for may lie under it.
  const measure = () => document.documentElement.style.setProperty("--composer", `${$("#composer").offsetHeight}px`);
  new ResizeObserver(measure).observe($("#composer"));
  $("#composer").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  $("#prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("#composer").requestSubmit();
  });
  $("#stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  $("#clear").addEventListener("click", clear);
  $("#copy").addEventListener("click", copyCode);
  $("#link").addEventListener("click", copyLink);
  $("#compare").addEventListener("change", (event) => setCompare(event.target.checked));
  for (const view of ["#by-weight", "#markdown"]) $(view).addEventListener("change", showViews);
  $("#key").addEventListener("change", () => (server === null ? connect() : showCode()));
  $("#request").addEventListener("submit", (event) => event.preventDefault());
  for (const input of document.querySelectorAll('input[name="mode"]')) input.addEventListener("change", showMode);
  for (const place of ["#request", ".code-bar", "#composer"]) $(place).addEventListener("input", showCode);
}

setUp();
await connect();
performance.mark("interactive");
