"""JSON schemas as the grammar backend must see them to write JSON that parses.

xgrammar, vLLM's default backend, lets a string of bounded length hold raw control characters (mlc-ai/xgrammar issue
800), which JSON forbids: the answer follows the grammar and does not parse. Its way with `pattern` is right, so such a
string gets a pattern that says the same as its bounds.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.sampling_params import StructuredOutputsParams

_BOUNDS = ("minLength", "maxLength")
# Neither controls nor what ends or escapes in a string; no surrogates.
_CHARACTER = r"[\u0020\u0021\u0023-\u005b\u005d-\ud7ff\ue000-\u{10ffff}]"
_SAID_OTHERWISE = ("pattern", "format", "enum", "const")


def keep_strings_parseable(structure: StructuredOutputsParams) -> None:
    """Rewrite the schemas of one request in place: its `json`, and those in its tool calls' `structural_tag`.

    Text that is no JSON is left to vLLM, which refuses it with a message of its own.
    """
    if structure.json is not None:
        structure.json = _rewritten(structure.json)
    if structure.structural_tag is not None:
        structure.structural_tag = _rewritten(structure.structural_tag)


def _rewritten(schema: Any) -> Any:
    if not isinstance(schema, str):
        return bounded(schema)
    try:
        return json.dumps(bounded(json.loads(schema)))
    except ValueError:
        return schema


def bounded(schema: Any) -> Any:
    """A copy of a schema in which every string with bounds has a pattern.

    A property that happens to be called `maxLength` has a schema as its value, no number, and so is no bound.
    """
    if isinstance(schema, list):
        return [bounded(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: bounded(value) for key, value in schema.items()}
    least, most = (copy.get(name) for name in _BOUNDS)
    if not isinstance(least, int) and not isinstance(most, int):
        return copy
    if copy.get("type") == "string" and not any(name in copy for name in _SAID_OTHERWISE):
        # vLLM refuses a pattern together with bounds, which xgrammar would not obey.
        for name in _BOUNDS:
            copy.pop(name, None)
        copy["pattern"] = f"^{_CHARACTER}{{{least or 0},{'' if most is None else most}}}$"
    return copy
