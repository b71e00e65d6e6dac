"""Constraints as the pinned backend reads them: what is followed, what is refused and how, and what nothing costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import llguidance
import llguidance.hf
import psutil
import pytest
from transformers import AutoTokenizer
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.structured_output.backend_guidance import serialize_guidance_grammar
from vllm.v1.structured_output.backend_types import StructuredOutputOptions

from server.config.structures import STRUCTURES_BACKEND, StructuresConfig
from server.config.traffic import LimitsConfig
from server.engine.structures.compiler import Compiler, Trial
from server.engine.structures.grammar import Kind, StructureError, compiled_form, lark_of, tried, where_is
from server.engine.structures.limits import Budget, parsed
from server.engine.structures.pinned import pinned, readable
from server.engine.structures.tags import lark_of_tag

ZOO = Path(__file__).parents[2] / "zoo" / "models" / "large"
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
ARGUMENTS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
TAG = {
    "type": "tag",
    "begin": '<tool_call>\n{"name": "f", "arguments": ',
    "content": {"type": "json_schema", "json_schema": ARGUMENTS},
    "end": "}\n</tool_call>",
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ZOO)


@pytest.fixture(scope="module")
def ids(tokenizer: Any) -> llguidance.LLTokenizer:
    return llguidance.hf.from_tokenizer(tokenizer, len(tokenizer))


@pytest.fixture
async def compiler(tokenizer: Any) -> AsyncIterator[Compiler]:
    compiler = Compiler(tokenizer, len(tokenizer), cpu_s=1.0, compact=False)
    yield compiler
    await compiler.close()


def follows(ids: llguidance.LLTokenizer, tokenizer: Any, form: str, text: str) -> bool:
    matcher = tried(ids, form)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("option", "kind", "spec"),
    [
        (StructuredOutputOptions.JSON, "json", json.dumps(ARGUMENTS)),
        (StructuredOutputOptions.REGEX, "regex", "[a-f]+"),
        (StructuredOutputOptions.CHOICE, "choice", '["red", "blue"]'),
        (StructuredOutputOptions.GRAMMAR, "grammar", 'root ::= "a" | "b"'),
        (StructuredOutputOptions.GRAMMAR, "grammar", 'start: "a" | "b"'),
    ],
)
def test_what_is_tried_is_what_vllm_compiles(option: StructuredOutputOptions, kind: Kind, spec: str) -> None:
    for compact in (False, True):
        assert compiled_form(kind, spec, compact) == serialize_guidance_grammar(option, spec, compact)


def test_a_grammar_in_larks_syntax_stays_as_it_is() -> None:
    lark = lark_of('root ::= "a" root | "b"')
    assert lark_of(lark) == lark


@pytest.mark.parametrize(
    ("shape", "good", "bad"),
    [
        (
            {"type": "triggered_tags", "triggers": ["<tool_call>"], "tags": [TAG]},
            ["", "hello", f"hello {CALL} and {CALL}"],
            ['<tool_call>\n{"name": "g"', CALL.replace('"a"', '"b"')],
        ),
        (
            {"type": "tags_with_separator", "tags": [TAG], "separator": "\n", "at_least_one": True},
            [CALL, f"{CALL}\n{CALL}"],
            ["", "hello", f"{CALL}{CALL}"],
        ),
        (
            {
                "type": "tags_with_separator",
                "tags": [TAG],
                "separator": "",
                "at_least_one": True,
                "stop_after_first": True,
            },
            [CALL],
            ["", f"{CALL}{CALL}"],
        ),
        (
            {"type": "triggered_tags", "triggers": ["<tool_call>"], "tags": [TAG], "at_least_one": True},
            [CALL, f"{CALL} bye"],
            ["", "hello"],
        ),
        (
            {"type": "or", "elements": [TAG, {"type": "json_schema", "json_schema": {"type": "integer"}}]},
            [CALL, "12"],
            ["twelve"],
        ),
        ({"type": "tag", "begin": "<t>", "content": {"type": "any_text"}, "end": "</t>"}, ["<t>a b</t>"], ["<t>a"]),
        (
            {
                "type": "sequence",
                "elements": [{"type": "const_string", "value": 'say "'}, {"type": "regex", "pattern": "a/b+"}],
            },
            ['say "a/bb'],
            ["a/b"],
        ),
    ],
)
def test_structural_tags(
    ids: llguidance.LLTokenizer, tokenizer: Any, shape: Any, good: list[str], bad: list[str]
) -> None:
    form = compiled_form("grammar", lark_of_tag(json.dumps({"type": "structural_tag", "format": shape})))
    assert [follows(ids, tokenizer, form, text) for text in good] == [True] * len(good)
    assert [follows(ids, tokenizer, form, text) for text in bad] == [False] * len(bad)


def test_a_structural_tag_of_the_older_form(ids: llguidance.LLTokenizer, tokenizer: Any) -> None:
    tag = {"structures": [{"begin": "<n>", "schema": {"type": "integer"}, "end": "</n>"}], "triggers": ["<n"]}
    form = compiled_form("grammar", lark_of_tag(json.dumps(tag)))
    assert follows(ids, tokenizer, form, "five is <n>5</n>")
    assert not follows(ids, tokenizer, form, "five is <n>five</n>")


@pytest.mark.parametrize(
    "tag", ["{}", "[]", '{"format": {"type": "token", "token": 1}}', '{"format": {"type": "tag"}}']
)
def test_what_is_no_structural_tag_is_refused(tag: str) -> None:
    with pytest.raises(StructureError):
        lark_of_tag(tag)


@pytest.mark.parametrize(
    ("kind", "spec", "keyword", "words"),
    [
        ("json", {"type": "array", "uniqueItems": True}, "uniqueItems", "'uniqueItems'"),
        ("json", {"not": {"type": "string"}}, "not", "'not'"),
        ("json", {"type": "string", "format": "credit-card"}, "format", "'credit-card'"),
        ("json", {"oneOf": [{"type": "string"}, {"minLength": 3}]}, "oneOf", "anyOf"),
        ("json", {"$ref": "https://example.com/a.json"}, "$ref", "within the schema"),
        ("json", {"$ref": "#"}, None, "no text"),
        ("json", {"type": "integer", "minimum": 2, "maximum": 1}, None, "minimum"),
        ("json", {"type": "string", "pattern": "^(?=a)b"}, None, "look-ahead"),
        ("regex", "(a", None, "unclosed group"),
        ("regex", r"\ba", None, "word boundaries"),
        ("grammar", "root ::= root", None, "no text"),
        ("grammar", "root := (", None, "GBNF"),
        ("grammar", 'start: "a" b', None, '"b"'),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(
    ids: llguidance.LLTokenizer, kind: Kind, spec: Any, keyword: str | None, words: str
) -> None:
    with pytest.raises(StructureError) as caught:
        tried(ids, compiled_form(kind, spec if isinstance(spec, str) else json.dumps(spec)))
    assert caught.value.keyword == keyword
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "number", "multipleOf": 0.25}, ["0.75"], ["0.3"]),
        ({"type": "string", "maxLength": 4}, ['"abcd"', '"é b"'], ['"abcde"', '"a\tb"']),
        ({"anyOf": [{"type": "integer"}], "minimum": 5}, ["6"], ["4"]),
        ({"allOf": [{"type": "string"}, {"enum": ["yes", "no", 1]}]}, ['"yes"'], ["1", '"maybe"']),
    ],
)
def test_what_another_backend_would_drop_is_followed(
    ids: llguidance.LLTokenizer, tokenizer: Any, schema: Any, good: list[str], bad: list[str]
) -> None:
    form = compiled_form("json", json.dumps(schema))
    assert [follows(ids, tokenizer, form, text) for text in good] == [True] * len(good)
    assert [follows(ids, tokenizer, form, text) for text in bad] == [False] * len(bad)


def test_the_place_of_a_keyword() -> None:
    schema: Any = {"properties": {"not": {"items": {"not": {}}}}}
    assert where_is(schema, "not") == "properties.not.items"
    assert where_is({"not": {}}, "not") == ""


LIMITS = StructuresConfig(
    max_schema_nodes=20,
    max_enum_values=3,
    max_name_length=16,
    max_text_length=10,
    max_grammar_rules=2,
    max_required_count=5,
)


@pytest.mark.parametrize(
    ("count", "value", "setting"),
    [
        ("count_schema", [[]] * 30, "max_schema_nodes"),
        ("count_schema", {"enum": [1, 2, 3, 4]}, "max_enum_values"),
        ("count_schema", {"properties": {"a" * 17: {}}}, "max_name_length"),
        ("count_schema", {"pattern": "a" * 11}, "max_text_length"),
        ("count_schema", {"const": "a" * 11}, "max_text_length"),
        ("count_schema", {"pattern": "a{6}"}, "max_required_count"),
        ("count_schema", {"minProperties": 6}, "max_required_count"),
        ("count_schema", [[[[[[]]]]]], "max_json_depth"),
        ("count_choices", ["a"] * 4, "max_enum_values"),
        ("count_choices", ["a" * 11], "max_text_length"),
        ("count_text", "a" * 11, "max_text_length"),
        ("count_text", "a{6,}", "max_required_count"),
        ("count_grammar", "a ::= b\nb ::= c\nc ::= d\n", "max_grammar_rules"),
        ("count_grammar", "start: a\na: b\n\nb: c\n", "max_grammar_rules"),
        ("count_grammar", 'a ::= "12345678901"', "max_text_length"),
        ("count_name", "a" * 17, "max_name_length"),
    ],
)
def test_limits_are_named(count: str, value: Any, setting: str) -> None:
    with pytest.raises(StructureError, match=setting):
        getattr(Budget(LIMITS, max_depth=5), count)(value)


def test_the_defaults_pass_the_largest_schemas_that_people_publish() -> None:
    """The most of each in JSONSchemaBench's public sets: values, an `enum`, a name, a pattern, levels."""
    deep: Any = {}
    for _ in range(27):
        deep = {"items": deep}
    schema = {
        "properties": {"a" * 640: deep, "b": {"enum": list(range(5_383))}, "c": {"pattern": "a" * 5_153}},
        "anyOf": [True] * 23_000,
    }
    Budget(StructuresConfig(), LimitsConfig().max_json_depth).count_schema(schema)


def test_a_text_nested_too_deep_is_refused() -> None:
    with pytest.raises(StructureError, match="max_json_depth"):
        parsed("[" * 100_000, 64)


def test_engine_reads_tags_as_grammars_and_knows_its_backend() -> None:
    assert pinned(None) == {"disable_any_whitespace": True, "backend": STRUCTURES_BACKEND}
    assert pinned({"disable_any_whitespace": False}) == {
        "disable_any_whitespace": False,
        "backend": STRUCTURES_BACKEND,
    }
    read = readable(StructuredOutputsParams(structural_tag=json.dumps({"format": TAG})), compact=False)
    assert read.structural_tag is None
    assert read.grammar is not None
    assert read.grammar.startswith("%llguidance")
    assert read._backend == STRUCTURES_BACKEND


class TestCompiler:
    async def test_outcomes_are_remembered(self, compiler: Compiler) -> None:
        trial = Trial("grammar", 'root ::= "a" | "b"')
        first = await compiler.outcome(trial)
        assert first.lark is not None
        assert await compiler.outcome(trial) is first

    async def test_what_another_field_leaves(self, compiler: Compiler, tokenizer: Any) -> None:
        (a,) = tokenizer.encode("a", add_special_tokens=False)
        for allowed, banned, meets in (((a,), (), True), ((a + 1,), (), False), (None, (a,), False)):
            assert (await compiler.outcome(Trial("regex", "a", allowed, banned))).meets is meets

    async def test_what_costs_too_much_is_refused_and_ends(self, compiler: Compiler) -> None:
        rules = "\n".join(f'r{number} ::= "a{number}" r{number + 1} | "x"' for number in range(4000))
        with pytest.raises(StructureError, match="processor time"):
            await compiler.outcome(Trial("grammar", f'root ::= r0\n{rules}\nr4000 ::= "z"'))
        assert _workers() == []
        assert (await compiler.outcome(Trial("regex", "a+"))).meets

    async def test_work_ends_with_its_request(self, compiler: Compiler) -> None:
        await compiler.outcome(Trial("regex", "a"))
        rules = "\n".join(f'r{number} ::= "b{number}" r{number + 1} | "x"' for number in range(4000))
        task = asyncio.create_task(compiler.outcome(Trial("grammar", f'root ::= r0\n{rules}\nr4000 ::= "z"')))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        deadline = time.monotonic() + 2
        while _workers() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert _workers() == []

    async def test_a_small_schema_does_not_wait_behind_large_ones(self, compiler: Compiler) -> None:
        rules = [f"r{i} ::= " + " | ".join(f'"{i}{j}"' for j in range(40)) + f" r{i + 1}" for i in range(300)]
        large = [Trial("grammar", "\n".join([f"root ::= r0 # {n}", *rules, 'r300 ::= "z"'])) for n in range(6)]
        order: list[str] = []

        async def go(trial: Trial, name: str) -> None:
            with contextlib.suppress(StructureError):  # on a busy machine the large ones may cost too much
                await compiler.outcome(trial)
            order.append(name)

        tasks = [asyncio.create_task(go(trial, "large")) for trial in large]
        await asyncio.sleep(0)
        await asyncio.gather(*tasks, go(Trial("regex", "a"), "small"))
        assert "small" in order[:3]


def _workers() -> list[psutil.Process]:
    return [child for child in psutil.Process(os.getpid()).children() if _is_worker(child)]


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # a zombie too, which may become one between two looks
        return process.status() != psutil.STATUS_ZOMBIE and "server.engine.structures.worker" in process.cmdline()
    return False
