"""What users of the official OpenAI SDK do, against the live server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me something."}]
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "colour": {"enum": ["red", "blue"]}},
    "required": ["ok", "colour"],
    "additionalProperties": False,
}


def test_models_are_the_presets(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["giant", "giant-red", "giant-blue", "giant-all"]


@pytest.mark.parametrize("model", ["giant", "giant-red", "giant-all"])
def test_chat(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.model == model
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_model_left_out_is_the_first_preset(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="", messages=MESSAGES, max_tokens=4)
    assert answer.model == "giant"


def test_chat_streamed_says_what_the_whole_answer_says(client: OpenAI) -> None:
    body: dict[str, Any] = {"model": "giant-red", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**body)
    chunks = list(client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.model for chunk in chunks} == {"giant-red"}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_completion_streamed_and_not(client: OpenAI) -> None:
    body: dict[str, Any] = {"model": "giant-all", "prompt": "Once upon", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**body)
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**body, stream=True))
    assert whole.object == "text_completion"
    assert streamed == whole.choices[0].text


async def test_async_chat_and_completion_at_once(async_client: AsyncOpenAI) -> None:
    chats = [
        async_client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=6, temperature=0)
        for model in ("giant", "giant-red", "giant-blue", "giant-all")
    ]
    texts = [
        async_client.completions.create(model="giant-red", prompt=f"Line {i}", max_tokens=6, temperature=0)
        for i in range(4)
    ]
    answers: list[Any] = await asyncio.gather(*chats, *texts)
    assert all(1 <= answer.usage.completion_tokens <= 6 for answer in answers)
    assert [answer.model for answer in answers[:4]] == ["giant", "giant-red", "giant-blue", "giant-all"]


async def test_async_stream(async_client: AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(model="giant-red", messages=MESSAGES, max_tokens=6, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "length"


def test_n_gives_choices_and_seed_repeats_them(client: OpenAI) -> None:
    body: dict[str, Any] = {
        "model": "giant-red",
        "messages": MESSAGES,
        "n": 4,
        "seed": 11,
        "temperature": 1.0,
        "max_tokens": 8,
    }
    first, second = (client.chat.completions.create(**body) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert len(set(texts)) > 1
    assert texts == [choice.message.content for choice in second.choices]


def test_stop_ends_before_the_string(client: OpenAI) -> None:
    body: dict[str, Any] = {"model": "giant-red", "prompt": "Once upon", "max_tokens": 12, "temperature": 0}
    text = client.completions.create(**body).choices[0].text
    stop = text[3:5]
    stopped = client.completions.create(**body, stop=[stop]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.text == text[: text.index(stop)]


def test_logprobs_are_of_the_sampled_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="giant-red", messages=MESSAGES, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 5
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(top.logprob for top in token.top_logprobs)


def test_temperature_spreads_what_greedy_repeats(client: OpenAI) -> None:
    def texts(temperature: float) -> set[str | None]:
        answers = [
            client.chat.completions.create(model="giant-red", messages=MESSAGES, max_tokens=6, temperature=temperature)
            for _ in range(6)
        ]
        return {answer.choices[0].message.content for answer in answers}

    assert len(texts(0.0)) == 1
    assert len(texts(1.5)) > 1


@pytest.mark.parametrize("fusion", [{}, {"weighting": "static", "alpha": 1.0}, {"weighting": "kl-grid"}])
def test_json_schema_holds(client: OpenAI, fusion: dict[str, Any]) -> None:
    answer = client.chat.completions.create(
        model="giant-red",
        messages=MESSAGES,
        max_tokens=150,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
        extra_body={"fusion": fusion},
    )
    content = json.loads(answer.choices[0].message.content or "")
    assert set(content) == {"ok", "colour"}
    assert content["colour"] in ("red", "blue")


def test_responses_streamed_and_not(client: OpenAI) -> None:
    body: dict[str, Any] = {"model": "giant-red", "input": "Hello", "max_output_tokens": 16, "temperature": 0}
    trace = {"fusion": {"trace": True}}
    whole: Any = client.responses.create(**body, extra_body=trace)
    assert whole.model == "giant-red"
    assert len(whole.fusion["token_ids"]) == whole.usage.output_tokens == 16
    events: list[Any] = list(client.responses.create(**body, stream=True, extra_body=trace))
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == whole.output_text
    streamed = [token for event in events if getattr(event, "fusion", None) for token in event.fusion["token_ids"]]
    assert streamed == whole.fusion["token_ids"]


def test_no_trace_unless_asked(client: OpenAI) -> None:
    answer: Any = client.chat.completions.create(model="giant-red", messages=MESSAGES, max_tokens=4)
    assert not hasattr(answer.choices[0], "fusion")


def test_request_overrides_the_preset_field_by_field(client: OpenAI) -> None:
    def alphas(**fusion: Any) -> dict[str, list[float]]:
        answer: Any = client.completions.create(
            model="giant-blue", prompt="One", max_tokens=4, extra_body={"fusion": {**fusion, "trace": True}}
        )
        found: dict[str, list[float]] = answer.choices[0].fusion["alpha"]
        return found

    assert alphas() == {"blue": [1.0] * 4}  # the preset: static, 1.0
    assert alphas(alpha=-0.5) == {"blue": [-0.5] * 4}
    assert alphas(experts=["red", "blue"], alpha={"red": 0.25, "blue": 2}) == {"red": [0.25] * 4, "blue": [2.0] * 4}
    assert alphas(weighting="none") == {}
    assert max(alphas(weighting="kl", alpha_max=0.3)["blue"]) <= 0.3
