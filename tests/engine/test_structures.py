"""Schemas are rewritten so that what follows the grammar parses, and says what it said before."""

from __future__ import annotations

import json
from typing import Any

import pytest
import xgrammar
from vllm.sampling_params import StructuredOutputsParams
from xgrammar.testing import _is_grammar_accept_string

from server.engine.structures import bounded, keep_strings_parseable


def accepts(schema: Any, text: str) -> bool:
    grammar = xgrammar.Grammar.from_json_schema(json.dumps(schema), any_whitespace=False)
    return bool(_is_grammar_accept_string(grammar, text))


def test_the_backend_still_needs_it() -> None:
    assert accepts({"type": "string", "maxLength": 4}, '"a\tb"'), (
        "xgrammar closed the hole: drop server.engine.structures"
    )


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            {"type": "string", "maxLength": 4},
            ['""', '"abcd"', '"é b"', '"日本😀"'],
            ['"abcde"', '"a\tb"', '"\x0c"', '"a"b"', '"a"b"', '"a\\"'],
        ),
        ({"type": "string", "minLength": 2}, ['"ab"', '"abcdefgh"'], ['"a"', '"a\x01b"']),
        ({"type": "string", "minLength": 1, "maxLength": 2}, ['"a"', '"ab"'], ['""', '"abc"', '"\t"']),
    ],
)
def test_bounds_stay_and_control_characters_go(schema: Any, good: list[str], bad: list[str]) -> None:
    changed = bounded(schema)
    assert [accepts(changed, text) for text in good] == [True] * len(good)
    assert [accepts(changed, text) for text in bad] == [False] * len(bad)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "string", "maxLength": 4, "pattern": "^a*$"},
        {"type": "string", "maxLength": 4, "enum": ["a"]},
        {"type": "object", "properties": {"maxLength": {"type": "integer"}, "type": {"const": "string"}}},
    ],
)
def test_others_are_left_alone(schema: Any) -> None:
    assert bounded(schema) == schema


def test_schemas_inside_tool_calls_and_text() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}}
    structure = StructuredOutputsParams(structural_tag=json.dumps({"format": {"json_schema": schema}}))
    keep_strings_parseable(structure)
    assert structure.structural_tag is not None
    found = json.loads(structure.structural_tag)["format"]["json_schema"]["properties"]["name"]
    assert found["pattern"].endswith("{0,3}$")
    assert "maxLength" not in found


def test_text_that_is_no_json_is_left_to_vllm() -> None:
    structure = StructuredOutputsParams(json="{oops")
    keep_strings_parseable(structure)
    assert structure.json == "{oops"
