"""`echo` with all that goes with it: each choice brings its prompt, streamed or not; offsets are those of the text."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.server_process import ServerProcess, demo_server

TEXT = "/v1/completions"
PROMPT = "Two and three"


@pytest.fixture(scope="module")
def demo() -> ServerProcess:
    """Its tokenizer begins every prompt with `<s>`."""
    return demo_server()


def choices(server: ServerProcess, **fields: Any) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """The choices of an answer by index, whether streamed or not, and its usage."""
    body = {"prompt": PROMPT, "max_tokens": 4, "seed": 1, "echo": True, **fields}
    if not body.get("stream"):
        answer = httpx.post(server.url + TEXT, json=body, timeout=60).json()
        return {choice["index"]: choice for choice in answer["choices"]}, answer["usage"]
    found: dict[int, dict[str, Any]] = {}
    usage: dict[str, Any] = {}
    body["stream_options"] = {"include_usage": True}
    for line in httpx.post(server.url + TEXT, json=body, timeout=60).text.split("\n"):
        if not line.startswith("data: {"):
            continue
        event = json.loads(line[6:])
        assert "error" not in event, event
        usage = event.get("usage") or usage
        for part in event["choices"]:
            whole = found.setdefault(part["index"], {"text": "", "logprobs": None, "fusion": None})
            whole["text"] += part["text"]
            if part.get("logprobs"):
                whole["logprobs"] = whole["logprobs"] or {"tokens": [], "text_offset": [], "token_logprobs": []}
                for name, values in whole["logprobs"].items():
                    values += part["logprobs"][name]
            whole["fusion"] = part.get("fusion") or whole["fusion"]
    return found, usage


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("preset", ["giant", "giant-math"])
@pytest.mark.parametrize("tokens", [0, 4])
def test_a_stream_says_what_the_whole_says(demo: ServerProcess, n: int, preset: str, tokens: int) -> None:
    fields = {"n": n, "logprobs": 1, "model": preset, "max_tokens": tokens, "temperature": 1.0}
    whole, usage = choices(demo, **fields)
    streamed, streamed_usage = choices(demo, **fields, stream=True)
    assert set(whole) == set(streamed) == set(range(n))
    assert usage["completion_tokens"] == streamed_usage["completion_tokens"] == n * tokens
    for index in range(n):
        one, other = whole[index], streamed[index]
        assert one["text"] == other["text"]
        assert one["text"].startswith(PROMPT)
        assert one["logprobs"]["tokens"] == other["logprobs"]["tokens"]
        assert one["logprobs"]["text_offset"] == other["logprobs"]["text_offset"]


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_are_those_of_the_text(demo: ServerProcess, stream: bool) -> None:
    found, _ = choices(demo, logprobs=0, model="giant-math", temperature=0, stream=stream)
    logprobs, text = found[0]["logprobs"], found[0]["text"]
    assert logprobs["tokens"][0] == "<s>"
    assert logprobs["text_offset"][:2] == [0, 0]
    for token, offset in zip(logprobs["tokens"][1:], logprobs["text_offset"][1:], strict=True):
        assert text[offset : offset + len(token)] == token


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_and_choices(demo: ServerProcess, stream: bool) -> None:
    prompts = ["One", "Four plus five"]
    found, _ = choices(demo, prompt=prompts, n=2, logprobs=1, model="giant", stream=stream, temperature=1.0)
    assert [found[index]["text"].startswith(prompts[index // 2]) for index in range(4)] == [True] * 4


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_generated_has_no_trace(demo: ServerProcess, stream: bool) -> None:
    fields = {"model": "giant-math", "fusion": {"trace": True}, "stream": stream, "temperature": 0}
    nothing, usage = choices(demo, **fields, max_tokens=0, return_token_ids=True)
    assert not nothing[0].get("fusion")
    assert not nothing[0].get("token_ids")
    assert usage["completion_tokens"] == 0
    some, _ = choices(demo, **fields, max_tokens=1)
    assert len(some[0]["fusion"]["token_ids"]) == 1
    assert some[0]["fusion"]["alpha"]["math"][0] is not None
