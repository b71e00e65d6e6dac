"""Texts that are longer than the context can hold, on every route that renders or tokenizes."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import pytest

from tests.server_process import ServerProcess

CONTEXT = 256
HUGE = "a b " * 1_750_000  # 7 MB, some seconds of a tokenizer's time
SOON = 3.0
CHAT = {"model": "giant", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def post(server: ServerProcess, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=100)


@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        ("/tokenize", "prompt", {"prompt": HUGE}),
        ("/tokenize", "prompt", {"prompt": "a b " * 1000}),
        ("/tokenize", "messages", {"messages": messages(HUGE)}),
        ("/detokenize", "tokens", {"tokens": [300] * (CONTEXT + 1)}),
        ("/v1/completions", "prompt", {"prompt": HUGE}),
        ("/v1/completions", "prompt", {"prompt": ["a", HUGE]}),
        ("/v1/completions", "bad_words", {"prompt": "a", "bad_words": [HUGE]}),
        ("/v1/chat/completions", "messages", {"messages": messages(HUGE)}),
        ("/v1/responses", "input", {"input": HUGE}),
        ("/v1/responses", "input", {"instructions": HUGE, "input": "a"}),
    ],
)
def test_longer_than_the_context(server: ServerProcess, path: str, field: str, body: dict[str, Any]) -> None:
    started = time.monotonic()
    response = post(server, path, **body)
    assert time.monotonic() - started < SOON
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == field
    assert error["message"].startswith(f"{field}: ")


def test_as_much_as_the_context_holds(server: ServerProcess) -> None:
    tokens = post(server, "/tokenize", prompt="a b " * 63).json()["tokens"]
    assert 200 < len(tokens) <= CONTEXT
    assert post(server, "/detokenize", tokens=tokens).json()["prompt"] == "a b " * 63


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_truncated_before_the_tokenizer_sees_it(server: ServerProcess, side: str | None) -> None:
    options = {"model": "giant", "max_tokens": 4, "temperature": 0, "truncate_prompt_tokens": 20}
    options |= {"return_token_ids": True} | ({"truncation_side": side} if side else {})
    started = time.monotonic()
    huge = post(server, "/v1/completions", prompt=HUGE, **options).json()["choices"][0]
    assert time.monotonic() - started < SOON
    short = post(server, "/v1/completions", prompt=HUGE[-400:] if side == "left" else HUGE[:400], **options)
    expected = short.json()["choices"][0]
    assert len(expected["prompt_token_ids"]) == 20
    assert (huge["prompt_token_ids"], huge["text"]) == (expected["prompt_token_ids"], expected["text"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": HUGE}),
        ("/v1/completions", {"prompt": HUGE, "truncate_prompt_tokens": 16, "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": messages(HUGE), "truncate_prompt_tokens": 16, "max_tokens": 1}),
        # As much text as a request may hold, all of it within the context.
        ("/v1/completions", {"prompt": ["a b " * 200] * 256, "truncate_prompt_tokens": 16, "max_tokens": 1}),
    ],
)
def test_a_bystander_is_served(server: ServerProcess, path: str, body: dict[str, Any]) -> None:
    """Others have their long texts read at the same time."""
    threads = [threading.Thread(target=post, args=(server, path), kwargs=body) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            started = time.monotonic()
            assert post(server, "/v1/chat/completions", **CHAT).status_code == 200
            assert time.monotonic() - started < SOON
    finally:
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    "body",
    [
        {"messages": messages("a") * 10_001},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 10_001}]},
        {"messages": messages("a"), "chat_template_kwargs": {"a": [[]] * 10_001}},
    ],
)
def test_many_small_objects(server: ServerProcess, body: dict[str, Any]) -> None:
    """To read them takes seconds, in which the server can do nothing else."""
    response = post(server, "/v1/chat/completions", **body)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "body: its JSON holds more than 10,000 objects and lists"


def test_brackets_in_texts_are_no_objects(server: ServerProcess) -> None:
    response = post(server, "/v1/completions", prompt="[{" * 10_000, max_tokens=1, truncate_prompt_tokens=8)
    assert response.status_code == 200
