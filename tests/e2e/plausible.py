"""Requests of which every field means something by itself: what they ask for together is up to chance."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MASKED = (CHAT, TEXT)  # which have `allowed_token_ids`; /v1/responses keeps it unread
HALVES = ["\ud800", "\udfff", "a\ud83d", "\udc00b", "\ud83d\ud83d", "\udc00\ud800"]
TEXTS = [*HALVES, "\x00", "\u202e", "\ufeff", "", " ", "\\", '"', "{{ x }}", "a" * 5000, "\U0001f600", "</tool_call>"]
SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
    {"type": "number", "multipleOf": 0.01},
    {"type": "array", "items": {"enum": ["red", 1, None]}, "maxItems": 2},
    {"type": "array", "uniqueItems": True},
    {"type": "string", "pattern": "^[a-c]{1,3}$"},
    {"type": "string", "pattern": r"^\p{L}+$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "colour"},
    {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/x"}], "$defs": {"x": {"const": 7}}},
    {"oneOf": [{"type": "string"}, {"maxLength": 3}]},
    {"$ref": "#"},
    {"not": {}},
    {"minProperties": 10**6},
    {"type": "strin"},
    {"const": "a", "type": "integer"},
    True,
    [],
]
TAGS: list[Any] = [
    {"format": {"type": "const_string", "value": "ok"}},
    {"format": {"type": "tag", "begin": "<a>", "content": {"type": "any_text"}, "end": "</a>"}},
    {"structures": [{"begin": "<a>", "schema": SCHEMAS[0], "end": "</a>"}], "triggers": ["<a"]},
    {"format": {"type": "grammar", "grammar": "root ::= root"}},
    {"format": {}},
    {},
]
GRAMMARS = ['root ::= "a" | "b"', 'start: "a"+', "root ::= root", "root := (", "", 'start: "a" b', "%llguidance {"]
REGEXES = ["a+", r"\p{L}+", "(a", r"\ba", "(?=a)b", "[", "", "a{100000}", "(a|b){1,50}c"]


def _outputs() -> list[dict[str, Any]]:
    return [
        *({"json": schema} for schema in SCHEMAS),
        *({"regex": regex} for regex in REGEXES),
        *({"grammar": grammar} for grammar in GRAMMARS),
        *({"structural_tag": json.dumps(tag)} for tag in TAGS),
        {"choice": ["a", "b"]},
        {"choice": []},
        {"choice": ["a", ""]},
        {"json": json.dumps(SCHEMAS[0])},
        {"json": "[" * 3000},
        {"json_object": True},
        {"json_object": False},
        {"json": {}, "regex": "a"},
        {},
    ]


def _formats() -> list[dict[str, Any]]:
    return [
        *({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}} for schema in SCHEMAS),
        *({"type": "structural_tag", **tag} for tag in TAGS),
        {"type": "json_object"},
        {"type": "text"},
        {"type": "json_schema"},
    ]


def _tools(chat: bool) -> Iterator[list[dict[str, Any]]]:
    for number, schema in enumerate(SCHEMAS):
        for strict in (None, True, False):
            function = {"name": f"f{number}", "parameters": schema} | ({} if strict is None else {"strict": strict})
            yield [{"type": "function", "function": function} if chat else {"type": "function", **function}]


SAMPLING: dict[str, list[Any]] = {
    "n": [1, 2, 3, 0],
    "stream": [True, False],
    "temperature": [0, 1.0],
    "top_p": [1.0, 0.1, 0],
    "top_k": [-1, 1, 5],
    "min_p": [0, 0.5, 2],
    "seed": [1, 2**40],
    "stop": ["a", ["b", "c"], [""]],
    "stop_token_ids": [[2], [5, 6], [10**6]],
    "min_tokens": [0, 1, 3, 30],
    "ignore_eos": [True],
    "bad_words": [["a"], ["a", "b", "ab"], ["zz"], [""]],
    "allowed_token_ids": [[5], [5, 6], [2], list(range(100)), [], [10**6]],
    "logit_bias": [{"5": -100}, {"5": 100}, {"a": 1}],
    "presence_penalty": [2, -2, 9],
    "repetition_penalty": [1.2, 0],
    "logprobs": [True, 0, 1, 5],
    "top_logprobs": [0, 1, 50],
    "echo": [True],
    "prompt_logprobs": [0, 1],
    "return_token_ids": [True],
    "return_tokens_as_token_ids": [True],
    "include_stop_str_in_output": [True],
    "skip_special_tokens": [False],
    "stream_options": [{"include_usage": True}],
    "max_tokens": [0, 1, 6, 300],
    "truncate_prompt_tokens": [1, 3, -1],
    "add_special_tokens": [True, False],
    "fusion": [{"trace": True}, {"trace": "full"}, {"weighting": "none"}, {"weighting": "static", "alpha": -1.0}],
    "vllm_xargs": [{"a": 1}, {"kv_transfer_params": "x"}, {"ec_transfer_params": "x"}, {"fusion": "x"}],
    "structured_outputs": _outputs(),
    "response_format": _formats(),
}
FIELDS: dict[str, dict[str, list[Any]]] = {
    TEXT: SAMPLING | {"prompt": ["a", ["a", "b c"], [5, 6], [5] * 256, [[5], [6, 7]], "", []]},
    CHAT: SAMPLING
    | {
        "tools": list(_tools(chat=True)),
        "tool_choice": ["auto", "none", "required", {"type": "function", "function": {"name": "f0"}}],
        "parallel_tool_calls": [False],
        "chat_template": ["{{ oops("],
        "chat_template_kwargs": [{"messages": 1}, {"a": 1}],
        "add_generation_prompt": [True, False],
        "continue_final_message": [True],
    },
    RESPONSES: {
        "stream": [True, False],
        "temperature": [0, 1.0],
        "tools": list(_tools(chat=False)),
        "tool_choice": ["auto", "none", "required"],
        "max_output_tokens": [0, 1, 16],
        "top_logprobs": [0, 2],
        "include": [["message.output_text.logprobs"]],
        "instructions": ["a"],
        "structured_outputs": _outputs(),
        "text": [{"format": {"type": "json_schema", "name": "x", "schema": schema}} for schema in SCHEMAS],
        "fusion": SAMPLING["fusion"],
    },
}
BASES: dict[str, dict[str, Any]] = {
    TEXT: {"model": "giant-red", "prompt": "a", "max_tokens": 4, "seed": 1},
    CHAT: {"model": "giant-red", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "seed": 1},
    RESPONSES: {"model": "giant-red", "input": "a", "max_output_tokens": 16},
}


def together(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A request with two to four fields beside those that it needs."""
    route = rng.choice([TEXT, TEXT, CHAT, RESPONSES])
    fields = FIELDS[route]
    chosen = rng.sample(sorted(fields), rng.randint(2, 4))
    request = BASES[route] | {name: copy.deepcopy(rng.choice(fields[name])) for name in chosen}
    if rng.random() < 0.3:
        request["model"] = rng.choice(["giant", "giant-all", "giant-red"])
    return route, request


def with_odd_text(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Such a request with one text, wherever it stands, replaced by an odd one."""
    route, request = together(rng)
    request = copy.deepcopy(request)
    places = list(_texts(request))
    rng.choice(places)(rng.choice(TEXTS))
    return route, request


def _texts(value: Any) -> Iterator[Callable[[str], None]]:
    """For each text within `value`, a function that replaces it."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, part in items:
        if isinstance(part, str):
            yield lambda text, key=key: value.__setitem__(key, text)  # type: ignore[misc]
        elif isinstance(part, dict | list):
            yield from _texts(part)
