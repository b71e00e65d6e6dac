"""Requests as OpenAI's reference allows them: `null` wherever the types of its SDK have it, and allowed tools."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI
from openai.types import completion_create_params as text_params
from openai.types.chat import ChatCompletionAssistantMessageParam
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import FunctionToolParam, response_create_params
from openai.types.responses import ResponseFormatTextJSONSchemaConfigParam as TextFormat
from openai.types.shared_params import FunctionDefinition, Reasoning
from openai.types.shared_params.response_format_json_schema import JSONSchema

from tests.e2e.conftest import Configured
from tests.server_process import ServerProcess

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
OBJECT = {"type": "object", "properties": {}}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "giant-red", "messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 2},
    TEXT: {"model": "giant-red", "prompt": "a", "max_tokens": 2},
    RESPONSES: {"model": "giant-red", "input": "a", "max_output_tokens": 2},
}
PARAMETERS = {
    CHAT: chat_params.CompletionCreateParamsBase,
    TEXT: text_params.CompletionCreateParamsBase,
    RESPONSES: response_create_params.ResponseCreateParamsBase,
}
ASSISTANT = {"role": "assistant", "content": "b"}
# Objects within a request: their type, what they must have, and the request around one.
NESTED: list[tuple[str, Any, dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]] = [
    (CHAT, ChatCompletionAssistantMessageParam, ASSISTANT, lambda it: {"messages": [it, *BODIES[CHAT]["messages"]]}),
    (CHAT, FunctionDefinition, {"name": "f"}, lambda it: {"tools": [{"type": "function", "function": it}]}),
    (
        CHAT,
        JSONSchema,
        {"name": "a", "schema": OBJECT},
        lambda it: {"response_format": {"type": "json_schema", "json_schema": it}},
    ),
    (RESPONSES, FunctionToolParam, {"type": "function", "name": "f"}, lambda it: {"tools": [it]}),
    (RESPONSES, Reasoning, {}, lambda it: {"reasoning": it}),
    (
        RESPONSES,
        TextFormat,
        {"type": "json_schema", "name": "a", "schema": OBJECT},
        lambda it: {"text": {"format": it}},
    ),
]
# What the reference's text calls nullable and its SDK's types do not, or only in older versions.
BESIDE_THE_TYPES = [(RESPONSES, name) for name in ("tools", "tool_choice", "text", "user", "stream")] + [
    (CHAT, name) for name in ("tools", "tool_choice", "response_format", "parallel_tool_calls", "user", "stream")
]


def nullable(parameters: Any) -> Iterator[str]:
    """The names of a typed dictionary's keys that may be `None`."""
    for name, hint in typing.get_type_hints(parameters).items():
        if typing.get_origin(hint) in (typing.Union, types.UnionType) and type(None) in typing.get_args(hint):
            yield name


def nulls() -> Iterator[Any]:
    """(route, where, fields) of one request for each place of the reference that may be null."""
    for route, parameters in PARAMETERS.items():
        for name in nullable(parameters):
            yield pytest.param(route, {name: None}, id=f"{route}-{name}")
    for route, name in BESIDE_THE_TYPES:
        yield pytest.param(route, {name: None}, id=f"{route}-{name}-")
    for route, kind, given, around in NESTED:
        for name in nullable(kind):
            yield pytest.param(route, around({**given, name: None}), id=f"{route}-{kind.__name__}-{name}")


def test_the_types_say_what_is_nullable() -> None:
    counts = {route: len(list(nullable(parameters))) for route, parameters in PARAMETERS.items()}
    assert counts[CHAT] > 20, counts
    assert counts[TEXT] > 10, counts
    assert counts[RESPONSES] > 20, counts


@pytest.mark.parametrize(("route", "fields"), list(nulls()))
def test_null(server: ServerProcess, route: str, fields: dict[str, Any]) -> None:
    body = {"max_tokens": 2, **BODIES[route], **fields} if route == CHAT else {**BODIES[route], **fields}
    answer = httpx.post(server.url + route, json=body, timeout=60)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("field", ["experts", "weighting", "alpha", "alpha_max", "trace"])
def test_null_within_fusion(server: ServerProcess, field: str) -> None:
    answer = httpx.post(server.url + TEXT, json={**BODIES[TEXT], "fusion": {field: None}}, timeout=60)
    assert answer.status_code == 200, answer.text


def test_what_must_be_there_cannot_be_null(server: ServerProcess) -> None:
    for route, field in ((CHAT, "messages"), (RESPONSES, "input")):
        answer = httpx.post(server.url + route, json={**BODIES[route], field: None})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text


def test_without_a_prompt_a_document_begins(client: OpenAI) -> None:
    empty: Any = None
    asked: dict[str, Any] = {"model": "giant-red", "max_tokens": 6, "temperature": 0}
    answer = client.completions.create(prompt=empty, **asked)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 1
    assert answer.choices[0].text == client.completions.create(prompt=[1], **asked).choices[0].text  # <bos>


class TestAllowedTools:
    """`tool_choice: {"type": "allowed_tools"}`, in the forms of chat and of responses."""

    NAMES = ("first", "second", "third")
    CHAT_TOOLS: typing.ClassVar[list[Any]] = [
        {"type": "function", "function": {"name": name, "parameters": OBJECT | {"additionalProperties": False}}}
        for name in NAMES
    ]
    TOOLS: typing.ClassVar[list[Any]] = [{"type": "function", **tool["function"]} for tool in CHAT_TOOLS]

    @staticmethod
    def client(configured: Configured) -> OpenAI:
        return OpenAI(base_url=configured.server.url + "/v1", api_key="none", max_retries=0)

    @pytest.mark.parametrize("allowed", [["second"], ["third", "first"]])
    def test_only_those_are_called(self, configured: Configured, allowed: list[str]) -> None:
        refs: list[Any] = [{"type": "function", "function": {"name": name}} for name in allowed]
        called = set()
        for seed in range(6):
            answer = self.client(configured).chat.completions.create(
                model="giant-red",
                messages=[{"role": "user", "content": "a"}],
                tools=self.CHAT_TOOLS,
                tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": refs}},
                parallel_tool_calls=False,
                seed=seed,
                max_tokens=60,
            )
            calls: list[Any] = answer.choices[0].message.tool_calls or []
            called |= {call.function.name for call in calls}
        assert called
        assert called <= set(allowed)

    def test_responses(self, configured: Configured) -> None:
        answer = self.client(configured).responses.create(
            model="giant-red",
            input="a",
            tools=self.TOOLS,
            tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "third"}]},
            parallel_tool_calls=False,
            max_output_tokens=60,
        )
        assert [item.name for item in answer.output if item.type == "function_call"] == ["third"]

    def test_auto_may_answer_with_text(self, configured: Configured) -> None:
        allowed: Any = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "first"}}]}
        answer = self.client(configured).chat.completions.create(
            model="giant-red",
            messages=[{"role": "user", "content": "a"}],
            tools=self.CHAT_TOOLS,
            tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
            max_tokens=4,
        )
        assert answer.choices[0].message.content

    @pytest.mark.parametrize(
        ("choice", "param", "words"),
        [
            ({"allowed_tools": 3}, "tool_choice.allowed_tools", "an object"),
            ({"allowed_tools": {"mode": "any"}}, "tool_choice.allowed_tools.mode", "'auto' or 'required'"),
            ({"allowed_tools": {"mode": ["auto"]}}, "tool_choice.allowed_tools.mode", "'auto' or 'required'"),
            ({"mode": "auto", "tools": []}, "tool_choice.tools", "at least one tool"),
            ({"mode": "auto", "tools": "first"}, "tool_choice.tools", "at least one tool"),
            (
                {"mode": "auto", "tools": [{"type": "function", "name": "frist"}]},
                "tool_choice.tools.0",
                "did you mean 'first'",
            ),
            ({"mode": "auto", "tools": [None]}, "tool_choice.tools.0", "none of the request's tools"),
        ],
    )
    def test_wrong(self, configured: Configured, choice: dict[str, Any], param: str, words: str) -> None:
        for route, tools in ((CHAT, self.CHAT_TOOLS), (RESPONSES, self.TOOLS)):
            body = {**BODIES[route], "tools": tools, "tool_choice": {"type": "allowed_tools", **choice}}
            answer = httpx.post(configured.server.url + route, json=body)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, param), error
            assert words in error["message"]

    def test_without_tools(self, server: ServerProcess) -> None:
        choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
        answer = httpx.post(server.url + RESPONSES, json={**BODIES[RESPONSES], "tool_choice": choice})
        assert answer.status_code == 400
        assert json.loads(answer.text)["error"]["param"] == "tool_choice.tools.0"
