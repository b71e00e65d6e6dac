"""Tool calls that the end of an answer cuts off: the whole answer says of them what the stream says."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.e2e.conftest import Configured

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]{4,12}$"}, "age": {"enum": [1, 2, 3]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "add_person", "parameters": SCHEMA}}]
NAMED = {"type": "function", "function": {"name": "add_person"}}
MARKUP = "<tool_call>"

Answer = tuple[str, list[tuple[str, Any]], str | None]


@pytest.fixture
def client(configured: Configured) -> OpenAI:
    return OpenAI(base_url=configured.server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture
def no_white_space(configured: Configured) -> dict[str, int]:
    """A bias against white space, which vLLM's grammar of tool calls allows without end."""
    ids: set[int] = set()
    for space in "\t\n\r ":
        body = {"model": "giant", "prompt": space, "add_special_tokens": False}
        ids |= set(httpx.post(configured.server.url + "/tokenize", json=body).json()["tokens"])
    return {str(token): -100 for token in ids}


def parsed(arguments: str) -> Any:
    """Complete arguments as what they say, others as they are: vLLM writes a whole answer's anew."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def whole(client: OpenAI, **body: Any) -> Answer:
    choice: Any = client.chat.completions.create(**body).choices[0]
    calls = [(call.function.name, parsed(call.function.arguments)) for call in choice.message.tool_calls or []]
    return choice.message.content or "", calls, choice.finish_reason


def streamed(client: OpenAI, **body: Any) -> Answer:
    content, finish, calls = "", None, dict[int, list[str]]()
    for chunk in client.chat.completions.create(**body, stream=True):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        finish = choice.finish_reason or finish
        for delta in choice.delta.tool_calls or []:
            call = calls.setdefault(delta.index, ["", ""])
            call[0] += delta.function.name or ""
            call[1] += delta.function.arguments or ""
    return content, [(name, parsed(arguments)) for name, arguments in calls.values()], finish


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_forced_call(client: OpenAI, no_white_space: dict[str, int], choice: Any) -> None:
    """At every length, from within the opening tag to past the call's end."""
    ends: set[str | None] = set()
    partial = 0
    for tokens in range(1, 120, 7):
        body = {
            "model": "giant-red",
            "messages": [{"role": "user", "content": "Give me one."}],
            "tools": TOOLS,
            "tool_choice": choice,
            "parallel_tool_calls": False,
            "temperature": 0,
            "logit_bias": no_white_space,
            "max_tokens": tokens,
        }
        content, calls, finish = answer = whole(client, **body)
        assert answer == streamed(client, **body), tokens
        assert MARKUP[:3] not in content
        ends.add(finish)
        partial += bool(calls) and finish == "length" and isinstance(calls[0][1], str)
    assert "length" in ends
    assert len(ends) == 2, "some are cut off, and some end by themselves"
    assert partial, "some hold a part of the call"


def test_several_choices(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="giant-red",
        messages=[{"role": "user", "content": "Give me one."}],
        tools=TOOLS,
        tool_choice="required",
        max_tokens=50,
        n=4,
        seed=1,
        temperature=1.0,
    )
    for choice in answer.choices:
        assert MARKUP not in (choice.message.content or "")
        assert choice.finish_reason == "length"
        calls = choice.message.tool_calls or []
        assert [call.function.name for call in calls if call.type == "function"] == ["add_person"]


def test_responses(client: OpenAI) -> None:
    tool: Any = {"type": "function", "name": "add_person", "parameters": SCHEMA}
    body: dict[str, Any] = {"model": "giant-red", "input": "a", "tools": [tool], "tool_choice": "required"}
    body |= {"parallel_tool_calls": False, "temperature": 0, "max_output_tokens": 50}
    answer = client.responses.create(**body)
    (call,) = answer.output
    assert call.type == "function_call"
    assert (answer.status, call.status, call.name) == ("incomplete", "incomplete", "add_person")
    last: Any = list(client.responses.create(**body, stream=True))[-1]
    assert (last.response.output[0].arguments, last.response.output[0].status) == (call.arguments, "incomplete")


def test_an_object_is_cut_off_alike(client: OpenAI) -> None:
    for tokens in (1, 2, 5, 9):
        body = {
            "model": "giant-red",
            "messages": [{"role": "user", "content": "Give me one."}],
            "response_format": {"type": "json_object"},
            "temperature": 0,
            "max_tokens": tokens,
        }
        answer = whole(client, **body)
        assert answer == streamed(client, **body)
        assert answer[1] == []
