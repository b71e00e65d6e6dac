"""The tokens that the server sends are those of the definition, computed independently."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from openai import AsyncOpenAI, OpenAI

from fusion_kernels import Fused
from tests.hf_loop import HFLoop, Settings

MAX_TOKENS = 8
SETTINGS = [
    Settings("static", ("red",), (1.0,)),
    Settings("kl-grid", ("red",)),
    Settings("static", ("red", "blue"), (0.7, -0.4)),
    Settings("kl-grid", ("red", "blue")),
    Settings("kl", ("blue",)),
    Settings("none"),
    Settings("kl-safe", ("red", "blue")),
    Settings("alone", ("blue",)),
    Settings("kl", ("red", "blue"), alpha_max=0.8),
]
PROMPTS = [f"{word} number {i} of the " + "long " * (i % 9) + "list" for i, word in enumerate(["Line", "Row"] * 16)]


class Case(NamedTuple):
    """A prompt with its settings, and the oracle's greedy tokens and their fusion."""

    prompt: list[int]
    settings: Settings
    expected: list[int]
    fused: Fused


@pytest.fixture(scope="module")
def cases(oracle: HFLoop) -> list[Case]:
    """32 prompts, in turns over the settings."""
    prompts = [oracle.tokenizer(prompt).input_ids for prompt in PROMPTS]
    settings = [SETTINGS[i % len(SETTINGS)] for i in range(len(prompts))]
    return [
        Case(prompt, setting, *oracle.greedy(prompt, setting, MAX_TOKENS))
        for prompt, setting in zip(prompts, settings, strict=True)
    ]


def request(prompt: list[int], settings: Settings, trace: bool = False) -> dict[str, Any]:
    return {
        "model": "giant-red" if settings.experts else "giant",
        "prompt": prompt,
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "extra_body": {"fusion": settings.field(trace), "return_token_ids": True, "ignore_eos": True},
    }


def test_one_at_a_time(client: OpenAI, cases: list[Case]) -> None:
    for prompt, settings, expected, _ in cases:
        answer: Any = client.completions.create(**request(prompt, settings))
        assert answer.choices[0].token_ids == expected, settings


async def test_all_at_once_with_settings_of_their_own(async_client: AsyncOpenAI, cases: list[Case]) -> None:
    answers: list[Any] = await asyncio.gather(
        *(async_client.completions.create(**request(case.prompt, case.settings)) for case in cases)
    )
    for answer, case in zip(answers, cases, strict=True):
        assert answer.choices[0].token_ids == case.expected, case.settings


async def test_traces_hold_one_entry_per_token_and_the_references_weights(
    async_client: AsyncOpenAI, oracle: HFLoop, cases: list[Case]
) -> None:
    answers: list[Any] = await asyncio.gather(
        *(async_client.completions.create(**request(case.prompt, case.settings, trace=True)) for case in cases)
    )
    for answer, case in zip(answers, cases, strict=True):
        trace = answer.choices[0].fusion
        assert trace["token_ids"] == case.expected
        assert set(trace["alpha"]) == set(case.settings.experts)
        check_trace(trace, case.fused, case.settings, oracle)


def check_trace(trace: dict[str, Any], reference: Fused, settings: Settings, oracle: HFLoop) -> None:
    assert {len(trace[key]) for key in ("token_ids", "kl_target", "kl_fused", "fallback")} == {len(reference.alpha)}
    alpha = torch.zeros_like(reference.alpha)
    for name in settings.experts:
        alpha[:, oracle.experts.index(name)] = torch.tensor(trace["alpha"][name])
    torch.testing.assert_close(alpha, reference.alpha, atol=2e-3, rtol=0)
    torch.testing.assert_close(torch.tensor(trace["kl_target"]), reference.kl_target, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(torch.tensor(trace["kl_fused"]), reference.kl_fused, atol=3e-3, rtol=3e-3)
    assert not any(trace["fallback"])


@pytest.mark.parametrize("settings", [SETTINGS[3], SETTINGS[4]], ids=["kl-grid", "kl"])
def test_streamed_traces_are_aligned_and_equal(client: OpenAI, oracle: HFLoop, settings: Settings) -> None:
    prompt = oracle.tokenizer(PROMPTS[5]).input_ids
    tokens: list[int] = []
    trace: dict[str, list[Any]] = {"token_ids": []}
    for chunk in client.completions.create(**request(prompt, settings, trace=True), stream=True):
        choice: Any = chunk.choices[0]
        tokens += choice.token_ids
        part = getattr(choice, "fusion", None)
        assert (part["token_ids"] if part else []) == choice.token_ids, "a chunk's trace is that of its own tokens"
        for key, value in (part or {}).items():
            if key == "alpha":
                for name, weights in value.items():
                    trace.setdefault(name, []).extend(weights)
            else:
                trace.setdefault(key, []).extend(value)
    expected, fused = oracle.greedy(prompt, settings, MAX_TOKENS)
    assert tokens == expected
    check_trace({**trace, "alpha": {name: trace[name] for name in settings.experts}}, fused, settings, oracle)


def test_traces_of_several_choices_and_prompts(client: OpenAI, oracle: HFLoop) -> None:
    settings = SETTINGS[3]
    prompts = [oracle.tokenizer(prompt).input_ids for prompt in PROMPTS[:2]]
    body = request(prompts[0], settings, trace=True) | {"prompt": prompts, "n": 3, "temperature": 1.0, "seed": 7}
    answer: Any = client.completions.create(**body)
    assert [choice.index for choice in answer.choices] == list(range(6))
    for choice in answer.choices:
        assert choice.fusion["token_ids"] == choice.token_ids
        reference = oracle.along(prompts[choice.index // 3], choice.token_ids, settings)
        check_trace(choice.fusion, reference, settings, oracle)
    assert len({tuple(choice.token_ids) for choice in answer.choices}) > 2, "sampled choices differ"


def test_prompt_logprobs_are_those_of_the_fused_distribution(client: OpenAI, oracle: HFLoop) -> None:
    settings = SETTINGS[2]
    prompt = oracle.tokenizer(PROMPTS[8] * 2).input_ids
    body = request(prompt, settings) | {"echo": True, "logprobs": 1, "max_tokens": 0}
    answer: Any = client.completions.create(**body)
    reference = oracle.fuse(prompt, settings, slice(0, -1)).logits.log_softmax(-1)
    expected = reference[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:])]
    got = answer.choices[0].logprobs.token_logprobs
    assert got[0] is None
    torch.testing.assert_close(torch.tensor(got[1:]), expected, atol=1e-4, rtol=0)


def test_giant_is_plain_vllm_serving_the_large_model(client: OpenAI, family: Path, oracle: HFLoop) -> None:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    prompts = [oracle.tokenizer(prompt).input_ids for prompt in PROMPTS[:8]]
    plain = LLM(
        model=str(family.parent / "large"),
        dtype="float32",
        max_model_len=256,
        enforce_eager=True,
        kv_cache_memory_bytes=2**26,
    )
    outputs = plain.generate(
        [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
        SamplingParams(temperature=0, max_tokens=32, ignore_eos=True),
        use_tqdm=False,
    )
    plain.llm_engine.engine_core.shutdown()
    for prompt, output in zip(prompts, outputs, strict=True):
        answer: Any = client.completions.create(
            model="giant",
            prompt=prompt,
            max_tokens=32,
            temperature=0,
            extra_body={"return_token_ids": True, "ignore_eos": True},
        )
        assert answer.choices[0].token_ids == list(output.outputs[0].token_ids)
