"""A reasoning parser, `engine.reasoning_parser`: what a model thinks reaches clients apart from what it answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.server_process import ServerProcess

# This parser goes by the text alone; the grammar makes a model of random weights write what it looks for.
PARSER = (
    *("--set", "engine.reasoning_parser=granite"),
    *("--set", "engine.structured_outputs_config={enable_in_reasoning: true}"),
)
THOUGHT, ANSWER = "one and one", "two"
REGEX = f"Here is my thought process:{THOUGHT}Here is my response:{ANSWER}"
MESSAGES = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def client(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    with ServerProcess(family, tmp_path_factory.mktemp("reasoning") / "log", *PARSER) as server:
        yield OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def options() -> dict[str, object]:
    return {"model": "giant-all", "max_tokens": 200, "extra_body": {"structured_outputs": {"regex": REGEX}}}


def test_an_answer_tells_them_apart(client: OpenAI) -> None:
    message = client.chat.completions.create(messages=MESSAGES, **options()).choices[0].message  # type: ignore[call-overload]
    assert (message.reasoning, message.content) == (THOUGHT, ANSWER)


def test_a_stream_tells_them_apart(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(messages=MESSAGES, stream=True, **options()))  # type: ignore[call-overload]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == THOUGHT
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
