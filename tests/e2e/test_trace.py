"""`"trace": "full"`: what every member thought and the fusion, against the reference's distributions."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import httpx
import pytest
import torch
from openai import AsyncOpenAI, OpenAI

from server.api.tokens import token_text
from server.engine.lens import TOP_TOKENS
from tests.hf_loop import HFLoop, Settings
from tests.server_process import ServerProcess

SETTINGS = [
    Settings("static", ("red", "blue"), (0.7, -0.4)),
    Settings("kl-grid", ("red",)),
    Settings("kl", ("red", "blue")),
    Settings("alone", ("blue",)),
    Settings("none"),
]
PROMPT = "The list of long things"
MESSAGES: Any = [{"role": "user", "content": "Hello"}]


def request(prompt: list[int], settings: Settings, trace: bool | str = "full", **fields: Any) -> dict[str, Any]:
    return {
        "model": "giant-red" if settings.experts else "giant",
        "prompt": prompt,
        "max_tokens": 6,
        "temperature": 0,
        "extra_body": {
            "fusion": {**settings.field(), "trace": trace},
            "return_token_ids": True,
            "ignore_eos": True,
        },
        **fields,
    }


def check(trace: dict[str, Any], prompt: list[int], settings: Settings, oracle: HFLoop) -> None:
    """Every entry of `large_top`, `fused_top` and the lens is the reference's, with the token's text."""
    tokens = trace["token_ids"]
    large = oracle.along(prompt, tokens, Settings("none")).logits
    fused = oracle.along(prompt, tokens, settings).logits
    members = {name: oracle.along(prompt, tokens, Settings("alone", (name,))).logits for name in settings.experts}
    if settings.experts and settings.weighting != "alone":
        members["base"] = oracle.base_along(prompt, tokens)
    members |= {"large": large, "fused": fused}
    assert trace["lens"].keys() == members.keys()
    first, *_, last = trace["lens"]
    assert (first, last) == ("large", "fused")
    for name in ("large", "fused"):
        assert trace[f"{name}_top"] == [thought["top"] for thought in trace["lens"][name]]
    for name, logits in members.items():
        probabilities = logits.softmax(-1)
        thoughts = trace["lens"][name]
        assert len(thoughts) == len(tokens)
        chosen = torch.tensor([thought["p"] for thought in thoughts])
        torch.testing.assert_close(chosen, probabilities[range(len(tokens)), tokens].float(), atol=1e-3, rtol=0)
        for row, top in zip(probabilities, (thought["top"] for thought in thoughts), strict=True):
            ids = torch.tensor([entry["id"] for entry in top])
            got = torch.tensor([entry["p"] for entry in top])
            assert len(set(ids.tolist())) == TOP_TOKENS
            torch.testing.assert_close(got, row[ids], atol=1e-3, rtol=0)
            torch.testing.assert_close(got, row.topk(TOP_TOKENS).values, atol=1e-3, rtol=0)
            for entry in top:
                assert entry["token"] == token_text(oracle.tokenizer, entry["id"])


async def test_all_weightings_in_one_batch(async_client: AsyncOpenAI, oracle: HFLoop) -> None:
    prompts = [oracle.tokenizer(f"{PROMPT} {i}").input_ids for i in range(len(SETTINGS))]
    bodies = [request(prompt, settings) for prompt, settings in zip(prompts, SETTINGS, strict=True)]
    bodies += [request(prompts[0], SETTINGS[0], trace=True), request(prompts[1], SETTINGS[4], trace=False)]
    answers: list[Any] = await asyncio.gather(*(async_client.completions.create(**body) for body in bodies))
    *full, plain, untraced = (answer.choices[0] for answer in answers)
    for choice, prompt, settings in zip(full, prompts, SETTINGS, strict=True):
        assert choice.fusion["token_ids"] == choice.token_ids
        check(choice.fusion, prompt, settings, oracle)
    assert "large_top" not in plain.fusion, "only those who ask for it get it"
    assert not hasattr(untraced, "fusion")


def test_the_large_model_alone(client: OpenAI, oracle: HFLoop) -> None:
    prompt = oracle.tokenizer(PROMPT).input_ids
    choice: Any = client.completions.create(**request(prompt, Settings("none"))).choices[0]
    check(choice.fusion, prompt, Settings("none"), oracle)
    assert choice.fusion["fused_top"] == choice.fusion["large_top"]
    assert choice.fusion["alpha"] == {}


def test_streamed_choices(client: OpenAI, oracle: HFLoop) -> None:
    prompt = oracle.tokenizer(PROMPT).input_ids
    settings = SETTINGS[1]
    traces: list[dict[str, Any]] = [{"token_ids": [], "large_top": [], "fused_top": [], "lens": {}} for _ in range(2)]
    body = request(prompt, settings, stream=True, n=2, temperature=1.0, seed=5)
    for chunk in client.completions.create(**body):
        choice: Any = chunk.choices[0]
        part = getattr(choice, "fusion", None)
        assert (part["token_ids"] if part else []) == choice.token_ids
        for key in ("token_ids", "large_top", "fused_top"):
            traces[choice.index][key] += part[key] if part else []
        for member, thoughts in (part["lens"] if part else {}).items():
            traces[choice.index]["lens"].setdefault(member, []).extend(thoughts)
    for trace in traces:
        assert len(trace["token_ids"]) == 6
        check(trace, prompt, settings, oracle)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_fusions_share_is_the_logprob(client: OpenAI, streamed: bool, temperature: float) -> None:
    """Of chat, whole and streamed: the chosen token's probability under `fused` is what `logprobs` says."""
    body = {
        "model": "giant-red", "messages": MESSAGES, "max_tokens": 6, "temperature": temperature, "seed": 3,
        "logprobs": True, "extra_body": {"fusion": {"trace": "full"}, "ignore_eos": True},
    }  # fmt: skip
    chunks: Any = client.chat.completions.create(**body, stream=True) if streamed else None
    parts = [chunk.choices[0] for chunk in chunks] if streamed else [client.chat.completions.create(**body).choices[0]]
    logprobs = [entry.logprob for part in parts if part.logprobs for entry in part.logprobs.content]
    shares: dict[str, list[float]] = {}
    for part in parts:
        for name, thoughts in getattr(part, "fusion", {"lens": {}})["lens"].items():
            shares.setdefault(name, []).extend(thought["p"] for thought in thoughts)
    assert list(shares) == ["large", "base", "red", "fused"]
    assert len(logprobs) == 6
    assert shares["fused"] == pytest.approx([math.exp(logprob) for logprob in logprobs], abs=1e-5)


def test_chat_and_responses(client: OpenAI) -> None:
    fusion = {"fusion": {"trace": "full"}}
    chat: Any = client.chat.completions.create(
        model="giant-red", messages=MESSAGES, max_tokens=4, temperature=0, extra_body=fusion
    )
    response: Any = client.responses.create(
        model="giant-red", input="Hello", max_output_tokens=4, temperature=0, extra_body=fusion
    )
    for trace in (chat.choices[0].fusion, response.fusion):
        assert len(trace["fused_top"]) == len(trace["token_ids"]) == 4
        for token_id, top in zip(trace["token_ids"], trace["fused_top"], strict=True):
            assert top[0]["id"] == token_id, "the greedy token leads the fused distribution"


def test_prompt_logprobs_beside_it(client: OpenAI, oracle: HFLoop) -> None:
    prompt = oracle.tokenizer(PROMPT * 3).input_ids
    settings = SETTINGS[0]
    choice: Any = client.completions.create(**request(prompt, settings, echo=True, logprobs=1)).choices[0]
    check(choice.fusion, prompt, settings, oracle)


@pytest.mark.parametrize("value", ["yes", 1, "Full", [True], 2.5])
def test_any_other_value_is_refused_by_name(server: ServerProcess, value: Any) -> None:
    body = {"model": "giant-red", "prompt": "a", "max_tokens": 1, "fusion": {"trace": value}}
    answer = httpx.post(server.url + "/v1/completions", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "fusion.trace"
    assert 'false, true or "full"' in error["message"]


def test_texts_of_odd_tokens(oracle: HFLoop) -> None:
    tokenizer: Any = oracle.tokenizer
    (first, *_) = tokenizer("世").input_ids
    assert token_text(tokenizer, first) == "<0xE4>"
    assert token_text(tokenizer, tokenizer.eos_token_id) == "<eos>"
    assert token_text(tokenizer, tokenizer(" ").input_ids[0]) == " "
    assert token_text(tokenizer, len(tokenizer) + 7) == f"<id {len(tokenizer) + 7}>"
