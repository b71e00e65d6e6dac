"""A reasoning parser, `engine.reasoning_parser`: what a model thinks reaches clients apart from what it answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.models import CHAT_TEMPLATE, make_family, make_tokenizer
from tests.server_process import ServerProcess

MARKERS = ["<think>", "</think>"]
BUDGET = 8
MESSAGES = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A family whose prompts end in the first marker, as DeepSeek-R1's do."""
    config = make_family(tmp_path_factory.mktemp("family"))
    for member in ("large", "base", "red", "blue"):
        tokenizer = make_tokenizer(config.parent / member, 512 - len(MARKERS))
        tokenizer.add_tokens(MARKERS)
        tokenizer.chat_template = CHAT_TEMPLATE.replace("assistant: ", "assistant: <think>")
        tokenizer.save_pretrained(config.parent / member)
    parser = ("--set", "engine.reasoning_parser=deepseek_r1")
    with ServerProcess(config, config.parent / "log", *parser) as server:
        yield OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def options() -> dict[str, object]:
    """Models of random weights never stop thinking: a budget makes them; the grammar holds for the answer alone."""
    letters = {str(token): 50 for token in range(259, 510)}
    extra = {"thinking_token_budget": BUDGET, "structured_outputs": {"regex": "one and one: two"}}
    return {"model": "giant-all", "max_tokens": 60, "temperature": 0, "logit_bias": letters, "extra_body": extra}


def test_an_answer_tells_them_apart(client: OpenAI) -> None:
    message = client.chat.completions.create(messages=MESSAGES, **options()).choices[0].message  # type: ignore[call-overload]
    assert message.content == "one and one: two"
    assert len(message.reasoning) == 2 * BUDGET, "each token is a pair of letters"


def test_a_stream_tells_them_apart(client: OpenAI) -> None:
    message = client.chat.completions.create(messages=MESSAGES, **options()).choices[0].message  # type: ignore[call-overload]
    chunks = list(client.chat.completions.create(messages=MESSAGES, stream=True, **options()))  # type: ignore[call-overload]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == message.reasoning
    assert "".join(delta.content or "" for delta in deltas) == message.content
