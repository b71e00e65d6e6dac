/** The same request as a curl command and as Python, ready to be pasted. */

/** @param {"chat" | "completion"} mode @param {object} body @param {boolean} withKey */
export function curlCall(url, body, withKey) {
  const lines = [`curl -N ${url}`, `-H 'Content-Type: application/json'`];
  if (withKey) lines.push(`-H "Authorization: Bearer $LOGIT_FUSION_API_KEY"`);
  lines.push(`-d '${JSON.stringify(body, null, 2).replaceAll("'", `'\\''`)}'`);
  return lines.join(" \\\n  ");
}

export function pythonCall(mode, base, body, withKey) {
  const { fusion, ...known } = body;
  const create = mode === "chat" ? "client.chat.completions.create" : "client.completions.create";
  const text = mode === "chat" ? "chunk.choices[0].delta.content or \"\"" : "chunk.choices[0].text";
  const fields = Object.entries(known).map(([name, value]) => `    ${name}=${python(value, 4)},`);
  return [
    ...(withKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${python(base)}, api_key=${withKey ? 'os.environ["LOGIT_FUSION_API_KEY"]' : '"none"'})`,
    `stream = ${create}(`,
    ...fields,
    `    extra_body=${python({ fusion }, 4)},`,
    ")",
    "for chunk in stream:",
    "    if chunk.choices:",
    `        print(${text}, end="", flush=True)`,
    "        # chunk.choices[0].fusion has the weights of the chunk's tokens",
  ].join("\n");
}

/** A JSON value as a Python literal. */
function python(value, indent = 0) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  // Apart from these, JSON's literals are Python's.
  if (typeof value !== "object") return JSON.stringify(value);
  const isList = Array.isArray(value);
  const items = isList
    ? value.map((item) => python(item, indent + 4))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${python(item, indent + 4)}`);
  const [open, close] = isList ? "[]" : "{}";
  const line = open + items.join(", ") + close;
  if (line.length + indent < 88 && !line.includes("\n")) return line;
  const pad = " ".repeat(indent);
  return `${open}\n${items.map((item) => `${pad}    ${item},`).join("\n")}\n${pad}${close}`;
}
