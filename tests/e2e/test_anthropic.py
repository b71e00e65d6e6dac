"""Anthropic's protocol, as its own SDK speaks it, against the live server."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic

from tests.e2e.conftest import Configured
from tests.e2e.traffic import metric, wait_for
from tests.server_process import ServerProcess

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me something."}]
TRACE = {"temperature": 0, "fusion": {"weighting": "kl", "experts": ["red"], "trace": True}}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "name": {"type": "string", "pattern": "^[a-z]{4,9}$"}},
    "required": ["colour", "name"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [{"name": "paint", "description": "Paint it.", "input_schema": SCHEMA}]
ASKED: dict[str, Any] = {"model": "giant-red", "messages": MESSAGES, "max_tokens": 8}
GREEDY = {"temperature": 0}  # which the SDK's newest models do not take, and so its methods do not


def sdk(server: ServerProcess) -> Anthropic:
    return Anthropic(base_url=server.url, api_key="none", max_retries=0)


def read(usage: Any) -> int:
    """Tokens of the prompt, wherever they came from."""
    return int(usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0))


@pytest.fixture
def claude(server: ServerProcess) -> Anthropic:
    return sdk(server)


class TestMessages:
    def test_an_answer(self, claude: Anthropic) -> None:
        answer = claude.messages.create(**ASKED)
        assert (answer.type, answer.role, answer.model) == ("message", "assistant", "giant-red")
        assert (answer.stop_reason, answer.stop_sequence) == ("max_tokens", None)
        assert answer.usage.output_tokens == 8
        assert [block.type for block in answer.content] == ["text"]
        assert answer._request_id

    def test_is_the_chats(self, claude: Anthropic, server: ServerProcess) -> None:
        """The same conversation in OpenAI's protocol gets the same tokens."""
        said: Any = claude.messages.create(system="Be brief.", **ASKED, extra_body=GREEDY).content[0]
        chat = {**ASKED, **GREEDY, "messages": [{"role": "system", "content": "Be brief."}, *MESSAGES]}
        answer = httpx.post(server.url + "/v1/chat/completions", json=chat, timeout=60).json()
        assert said.text == answer["choices"][0]["message"]["content"]

    def test_the_stream_is_the_whole(self, claude: Anthropic) -> None:
        whole = claude.messages.create(**ASKED, extra_body=TRACE)
        with claude.messages.stream(**ASKED, extra_body=TRACE) as stream:
            final = stream.get_final_message()
        assert [getattr(block, "text", None) for block in final.content] == [
            getattr(block, "text", None) for block in whole.content
        ]
        assert final.stop_reason == whole.stop_reason == "max_tokens"
        assert final.usage.output_tokens == whole.usage.output_tokens
        events = list(claude.messages.create(**ASKED, extra_body=TRACE, stream=True))
        traced = [token for event in events for token in (getattr(event, "fusion", None) or {}).get("token_ids", ())]
        assert traced == whole.fusion["token_ids"]
        assert len(traced) == 8
        assert len(whole.fusion["alpha"]["red"]) == 8

    async def test_async_stream(self, server: ServerProcess) -> None:
        client = AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0)
        async with client.messages.stream(**ASKED) as stream:
            text = "".join([piece async for piece in stream.text_stream])
        assert text

    def test_closing_a_stream_ends_it(self, claude: Anthropic, server: ServerProcess) -> None:
        with claude.messages.stream(**ASKED | {"max_tokens": 220}) as stream:
            next(iter(stream))
        wait_for(lambda: httpx.get(server.url + "/load").json() == {"server_load": 0}, 5)
        wait_for(lambda: metric(server.url, "vllm:num_requests_running") == 0, 5)

    def test_a_stop_sequence(self, claude: Anthropic) -> None:
        said: Any = claude.messages.create(**ASKED, extra_body=GREEDY).content[0]
        stop = said.text[2:4]
        answer: Any = claude.messages.create(**ASKED, stop_sequences=[stop], extra_body=GREEDY)
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
        assert answer.content[0].text == said.text[: said.text.index(stop)]

    def test_fusion_changes_the_answer(self, claude: Anthropic) -> None:
        plain = claude.messages.create(**ASKED, extra_body=GREEDY | {"fusion": {"weighting": "none"}})
        assert plain.content != claude.messages.create(**ASKED, extra_body=GREEDY).content

    def test_cached_tokens_are_told(self, claude: Anthropic) -> None:
        asked = ASKED | {"messages": [{"role": "user", "content": "One two three four five six seven. " * 6}]}
        first, second = (claude.messages.create(**asked).usage for _ in range(2))
        assert second.cache_read_input_tokens
        assert read(first) == read(second)

    def test_a_conversation_with_tools_and_images_left_out(self, claude: Anthropic) -> None:
        """What a coding agent sends back: calls, results, thinking, cache marks."""
        history: list[Any] = [
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "b", "signature": "c"},
                    {"type": "text", "text": "d"},
                    {"type": "tool_use", "id": "toolu_1", "name": "paint", "input": {"colour": "red"}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "done"}]},
        ]
        system: list[Any] = [{"type": "text", "text": "e", "cache_control": {"type": "ephemeral"}}]
        asked = ASKED | {"messages": history, "system": system, "tools": TOOLS}
        answer = claude.messages.create(**asked, metadata={"user_id": "somebody"}, thinking={"type": "disabled"})
        assert answer.usage.output_tokens == 8


class TestTools:
    @pytest.fixture
    def compact(self, configured: Configured) -> Anthropic:
        return sdk(configured.server)

    @pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "paint"}], ids=lambda it: it["type"])
    def test_a_forced_call(self, compact: Anthropic, choice: dict[str, Any]) -> None:
        for _ in range(8):  # random models may fill the tokens with white space
            answer = compact.messages.create(**ASKED | {"max_tokens": 150, "tools": TOOLS, "tool_choice": choice})
            call = next(block for block in answer.content if block.type == "tool_use")
            assert call.name == "paint"
            assert "<tool_call>" not in answer.to_json()
            if answer.stop_reason == "tool_use":
                assert set(call.input) == {"colour", "name"}
                break
            assert answer.stop_reason == "max_tokens"
            assert set(call.input) <= {"colour", "name"}

    def test_a_call_that_is_cut_off(self, compact: Anthropic) -> None:
        asked = ASKED | {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "paint"}}
        kinds = set()
        for tokens in (5, 30, 45, 60):
            whole = compact.messages.create(**asked | {"max_tokens": tokens}, extra_body=GREEDY)
            with compact.messages.stream(**asked | {"max_tokens": tokens}, extra_body=GREEDY) as stream:
                final = stream.get_final_message()
            assert whole.stop_reason == final.stop_reason == "max_tokens"
            assert "<tool_call>" not in whole.to_json()
            calls = [block for block in whole.content if block.type == "tool_use"]
            assert [(call.name, call.input) for call in calls] == [
                (block.name, block.input) for block in final.content if block.type == "tool_use"
            ]
            kinds |= {block.type for block in whole.content}
        assert "tool_use" in kinds


class TestCount:
    def test_is_what_an_answer_reads(self, claude: Anthropic) -> None:
        counted = claude.messages.count_tokens(model="giant-red", messages=MESSAGES, system="Be brief.")
        usage = claude.messages.create(**ASKED, system="Be brief.").usage
        assert counted.input_tokens == read(usage)

    def test_holds_no_place(self, claude: Anthropic, server: ServerProcess) -> None:
        for _ in range(5):
            claude.messages.count_tokens(model="giant", messages=MESSAGES)
        assert httpx.get(server.url + "/load").json() == {"server_load": 0}


LONG = [{"role": "user", "content": "word " * 2000}]
IMAGE = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aaaa"}}]
WRONG: list[tuple[dict[str, Any], int, str, str]] = [
    # changes to a good request, status, type, words of the message
    ({"model": "gaint-red"}, 404, "not_found_error", "model: there is no preset 'gaint-red'; did you mean 'giant-red'"),
    ({"model": ""}, 400, "invalid_request_error", "model"),
    ({"messages": []}, 400, "invalid_request_error", "messages: at least one"),
    ({"messages": "hi"}, 400, "invalid_request_error", "messages"),
    ({"messages": [{"role": "robot", "content": "a"}]}, 400, "invalid_request_error", "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, 400, "invalid_request_error", "messages.0"),
    ({"messages": [{"role": "user", "content": IMAGE}]}, 400, "invalid_request_error", "only text can be read"),
    ({"messages": LONG}, 400, "invalid_request_error", "messages: This model's maximum context length"),
    ({"tools": [{"name": "a"}]}, 400, "invalid_request_error", "tools.0.input_schema"),
    ({"fusion": {"weighting": "best"}}, 400, "invalid_request_error", "fusion.weighting"),
    ({"fusion": {"experts": ["rad"]}}, 404, "not_found_error", "did you mean 'red'"),
]
GENERATING: list[tuple[dict[str, Any], int, str, str]] = [
    ({"max_tokens": 0}, 400, "invalid_request_error", "max_tokens"),
    ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens: Input should be"),
    ({"max_tokens": 5000}, 400, "invalid_request_error", "max_tokens: max_tokens=5000 cannot be greater"),
    ({"temperature": -1}, 400, "invalid_request_error", "temperature"),
    ({"stop_sequences": 3}, 400, "invalid_request_error", "stop_sequences"),
    ({"tool_choice": {"type": "tool"}}, 400, "invalid_request_error", "tool_choice"),
    ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error", "tool_choice: 'any' needs tools"),
    ({"tool_choice": {"type": "tool", "name": "a"}}, 400, "invalid_request_error", "tool_choice: 'tool' needs tools"),
    (
        {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "pant"}},
        400,
        "invalid_request_error",
        "tool_choice.name: there is no tool 'pant'; did you mean 'paint'",
    ),
]


def error_of(answer: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"] == answer.headers["request-id"]
    error: dict[str, Any] = body["error"]
    assert set(error) == {"type", "message"}
    return error


class TestErrors:
    @pytest.mark.parametrize(("changes", "status", "kind", "words"), WRONG + GENERATING, ids=lambda it: str(it)[:40])
    def test_wrong(self, server: ServerProcess, changes: dict[str, Any], status: int, kind: str, words: str) -> None:
        for stream in (False, True):
            answer = httpx.post(server.url + "/v1/messages", json=ASKED | {"stream": stream} | changes, timeout=60)
            error = error_of(answer)
            assert (answer.status_code, error["type"]) == (status, kind), error
            assert words in error["message"]

    @pytest.mark.parametrize(("changes", "status", "kind", "words"), WRONG[:-2], ids=lambda it: str(it)[:40])
    def test_wrong_count(
        self, server: ServerProcess, changes: dict[str, Any], status: int, kind: str, words: str
    ) -> None:
        answer = httpx.post(server.url + "/v1/messages/count_tokens", json=ASKED | changes, timeout=60)
        error = error_of(answer)
        assert (answer.status_code, error["type"]) == (status, kind), error
        assert words in error["message"]

    def test_whatever_refuses_it(self, server: ServerProcess) -> None:
        url = server.url + "/v1/messages"
        headers = {"Content-Type": "application/json"}
        for answer, status, kind in (
            (httpx.get(url), 405, "invalid_request_error"),
            (httpx.post(url + "/nothing", json={}), 404, "not_found_error"),
            (httpx.post(url, content=b'{"model', headers=headers), 400, "invalid_request_error"),
            (httpx.post(url, content=b"[" * 100, headers=headers), 400, "invalid_request_error"),
            (httpx.post(url, content=b" " * (8 * 2**20 + 1), headers=headers), 413, "request_too_large"),
        ):
            assert (answer.status_code, error_of(answer)["type"]) == (status, kind)

    def test_within_a_stream(self, server: ServerProcess) -> None:
        """What only shows when the engine is asked is the stream's last event."""
        body = ASKED | {"stream": True, "stop_sequences": ["x"]}
        body["output_config"] = {"format": {"type": "json_schema", "schema": {"type": "no such type"}}}
        answer = httpx.post(server.url + "/v1/messages", json=body, timeout=60)
        if answer.status_code == 200:
            event, data = answer.text.strip().split("\n\n")[-1].split("\n")
            assert event == "event: error"
            assert json.loads(data.removeprefix("data: "))["error"]["type"] == "invalid_request_error"
        else:
            assert error_of(answer)["type"] == "invalid_request_error"

    def test_the_sdk_raises_its_own_classes(self, claude: Anthropic) -> None:
        with pytest.raises(anthropic.NotFoundError, match="there is no preset"):
            claude.messages.create(**ASKED | {"model": "nobody"})
        with pytest.raises(anthropic.BadRequestError, match=r"fusion\.alpha"):
            claude.messages.create(**ASKED, extra_body={"fusion": {"weighting": "static", "alpha": "1"}})


def test_the_schema_has_it(server: ServerProcess) -> None:
    schema = httpx.get(server.url + "/openapi.json").json()
    assert "fusion" in schema["components"]["schemas"]["FusionMessagesRequest"]["properties"]
    responses = schema["paths"]["/v1/messages"]["post"]["responses"]
    assert "AnthropicErrorResponse" in json.dumps(responses["429"])
