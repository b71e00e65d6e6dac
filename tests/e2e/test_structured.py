"""Structured outputs and tool calls of a fused model: whatever comes back is valid."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import jsonschema
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.conftest import Configured
from tests.hf_loop import HFLoop
from tests.server_process import ServerProcess

SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": "^[A-Za-z ]{1,8}$"},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 4},
    {
        "type": "object",
        "properties": {
            "kind": {"const": "point"},
            "at": {
                "type": "array",
                "items": {"type": "integer", "minimum": -9, "maximum": 9},
                "minItems": 2,
                "maxItems": 2,
            },
        },
        "required": ["kind", "at"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "inner": {"$ref": "#/$defs/inner"}},
        "required": ["ok", "inner"],
        "additionalProperties": False,
        "$defs": {
            "inner": {
                "type": "object",
                "properties": {"level": {"type": "integer", "minimum": 0, "maximum": 99}},
                "required": ["level"],
                "additionalProperties": False,
            }
        },
    },
    {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-f]{2,6}$"}]},
]
WEIGHTINGS: list[dict[str, Any]] = [
    {"weighting": "kl", "experts": ["red"]},
    {"weighting": "kl-grid", "experts": ["red", "blue"]},
    {"weighting": "static", "experts": ["blue"], "alpha": 1.5},
    {"weighting": "alone", "experts": ["red"]},
]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": "Something to call.", "parameters": schema}}
    for name, schema in (("add_person", SCHEMAS[0]), ("place_point", SCHEMAS[2]), ("nest", SCHEMAS[3]))
]
MESSAGES: list[Any] = [{"role": "user", "content": "Give me one."}]
CHOICES = 10


@pytest.fixture
def compact(configured: Configured) -> ServerProcess:
    """A server whose grammars leave out white space."""
    return configured.server


@pytest.fixture
def no_white_space(oracle: HFLoop) -> dict[str, int]:
    """A bias against white space, which vLLM's grammar of tool calls allows without end, and random models write."""
    return {str(token): -100 for space in "\t\n\r " for token in oracle.tokenizer(space).input_ids}


def to(server: ServerProcess) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=600)


@pytest.mark.parametrize("number", [100, pytest.param(10_000, marks=pytest.mark.long)])
async def test_samples_are_valid(compact: ServerProcess, number: int) -> None:
    requests = [(schema, fusion) for schema in SCHEMAS for fusion in WEIGHTINGS]
    rounds = -(-number // (CHOICES * len(requests)))
    gate = asyncio.Semaphore(8)

    async with to(compact) as client:

        async def sample(schema: dict[str, Any], fusion: dict[str, Any], seed: int) -> int:
            async with gate:
                answer = await client.chat.completions.create(
                    model="giant-red",
                    messages=MESSAGES,
                    n=CHOICES if number > 100 else 5,
                    seed=seed,
                    temperature=1.0,
                    max_tokens=200,
                    response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
                    extra_body={"fusion": fusion},
                )
            for choice in answer.choices:
                assert choice.finish_reason == "stop", choice
                jsonschema.validate(json.loads(choice.message.content or ""), schema)
            return len(answer.choices)

        sampled = await asyncio.gather(
            *(sample(schema, fusion, seed * 1000) for seed in range(rounds) for schema, fusion in requests)
        )
    print(f"{sum(sampled)} samples, all valid")
    assert sum(sampled) >= number


@pytest.mark.parametrize("number", [24, pytest.param(1000, marks=pytest.mark.long)])
async def test_tool_calls_parse(compact: ServerProcess, no_white_space: dict[str, int], number: int) -> None:
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    rng = random.Random(number)
    gate = asyncio.Semaphore(16)

    async with to(compact) as client:

        async def call(place: int) -> None:
            named = rng.choice([None, *schemas])
            choice: Any = "required" if named is None else {"type": "function", "function": {"name": named}}
            async with gate:
                answer = await client.chat.completions.create(
                    model="giant-red",
                    messages=MESSAGES,
                    tools=TOOLS,
                    tool_choice=choice,
                    parallel_tool_calls=False,
                    logit_bias=no_white_space,
                    seed=place,
                    temperature=1.0,
                    max_tokens=170,
                    extra_body={"fusion": WEIGHTINGS[place % len(WEIGHTINGS)]},
                )
            calls: list[Any] = answer.choices[0].message.tool_calls or []
            assert calls, (answer.choices[0].finish_reason, answer.choices[0].message.content)
            for made in calls:
                assert named in (None, made.function.name)
                jsonschema.validate(json.loads(made.function.arguments), schemas[made.function.name])

        await asyncio.gather(*(call(place) for place in range(number)))


def test_streamed_tool_call_is_the_whole_one(compact: ServerProcess, no_white_space: dict[str, int]) -> None:
    client = OpenAI(base_url=compact.url + "/v1", api_key="none", max_retries=0)
    body: dict[str, Any] = {
        "model": "giant-red",
        "messages": MESSAGES,
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "add_person"}},
        "seed": 4,
        "logit_bias": no_white_space,
        "max_tokens": 120,
    }
    whole: Any = client.chat.completions.create(**body).choices[0].message.tool_calls
    pieces = [
        call.function.arguments or ""
        for chunk in client.chat.completions.create(**body, stream=True)
        for call in chunk.choices[0].delta.tool_calls or []
        if call.function is not None
    ]
    assert json.loads("".join(pieces)) == json.loads(whole[0].function.arguments)


def test_responses_make_the_tool_call_that_is_required(compact: ServerProcess, no_white_space: dict[str, int]) -> None:
    client = OpenAI(base_url=compact.url + "/v1", api_key="none", max_retries=0)
    tool: Any = {"type": "function", "name": "add_person", "parameters": SCHEMAS[0], "strict": True}
    answer = client.responses.create(
        model="giant-red",
        input="Give me one.",
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=120,
        extra_body={"logit_bias": no_white_space},
    )
    (call,) = [item for item in answer.output if item.type == "function_call"]
    jsonschema.validate(json.loads(call.arguments), SCHEMAS[0])
