"""Sampled answers under speculation against the exact fused distribution, and against a fault that changes it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from vllm import SamplingParams
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind

from server.engine import launch
from server.engine.client import FusionEngine
from server.engine.speculation.drafter import with_drafter
from tests.engine.driver import fusion_settings
from tests.engine.engines import running
from tests.hf_loop import HFLoop, Settings
from zoo import FAMILY

EXPERTS = ["math", "facts", "text"]
TOKENS = 3
CHOICES = 50
"""Samples of one request."""
FEWEST = 5
"""Samples that a sequence must be expected in to be counted by itself."""
SPECULATION = ["speculation.draft=auto", "speculation.tokens=3"]

CASES = [
    ("math", Settings("kl", ("math",))),
    ("facts", Settings("kl", ("facts",))),
    ("text", Settings("static", ("text",), (0.7,))),
    ("math", Settings("kl-safe", ("math", "text"))),
    ("math", Settings("none")),
]


@pytest.fixture(scope="module")
def demo() -> HFLoop:
    return HFLoop(FAMILY / "models", EXPERTS)


def prompt_of(demo: HFLoop, task: str, number: int) -> list[int]:
    """The first tokens of an answer are free: the question is cut off before its end."""
    line = (FAMILY / "evaluation" / f"{task}.jsonl").read_text().splitlines()[number]
    tokens: list[int] = demo.tokenizer.encode(json.loads(line)["question"], add_special_tokens=False)
    return tokens[: max(2, len(tokens) // 2)]


def expected(demo: HFLoop, prompt: list[int], settings: Settings, samples: int) -> dict[tuple[int, ...], float]:
    """How often each sequence of `TOKENS` tokens is to be expected, of those that are to be expected often."""
    found: dict[tuple[int, ...], float] = {(): float(samples)}
    for _ in range(TOKENS):
        logits = demo.next([[*prompt, *sequence] for sequence in found], settings).logits.double()
        shares = torch.tensor(list(found.values()))[:, None] * torch.softmax(logits, dim=1)
        sequences = list(found)
        found = {
            (*sequences[row], token): float(shares[row, token])
            for row, token in torch.nonzero(shares >= FEWEST).tolist()
        }
    return found


async def draw(
    engine: FusionEngine, prompt: list[int], settings: Settings, samples: int
) -> tuple[Counter[tuple[int, ...]], int]:
    """How often each sequence came, of so many drawn at temperature 1."""
    asked = with_drafter(fusion_settings(settings, EXPERTS), "auto", EXPERTS, has_base=True)

    async def run(number: int) -> list[tuple[int, ...]]:
        params = SamplingParams(
            temperature=1,
            max_tokens=TOKENS,
            ignore_eos=True,
            n=CHOICES,
            seed=number * CHOICES,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        asked.attach(params)
        answers: list[tuple[int, ...]] = []
        async for output in engine.generate(TokensPrompt(prompt_token_ids=prompt), params, f"{id(prompt)}-{number}"):
            answers += [tuple(choice.token_ids) for choice in output.outputs]
        return answers

    answers = await asyncio.gather(*(run(number) for number in range(samples // CHOICES)))
    return Counter(sequence for answer in answers for sequence in answer), samples // CHOICES * CHOICES


async def chances(demo: HFLoop, samples: int, *settings: str) -> list[float]:
    """Of each case: the chance of samples as far from the exact distribution as those that came (chi-square)."""
    found = []
    async with running(FAMILY / "zoo.yaml", *SPECULATION, *settings) as engine:
        for number, (task, case) in enumerate(CASES):
            prompt = prompt_of(demo, task, number)
            came, drawn = await draw(engine, prompt, case, samples)
            exact = expected(demo, prompt, case, drawn)
            assert len(exact) >= 5, (task, exact)
            rest = drawn - sum(exact.values())
            observed = [came[sequence] for sequence in exact]
            found.append(float(chisquare([*observed, drawn - sum(observed)], [*exact.values(), rest]).pvalue))
    return found


@pytest.mark.parametrize("samples", [800, pytest.param(20000, marks=pytest.mark.long)])
async def test_samples_are_of_the_fused_distribution(demo: HFLoop, samples: int) -> None:
    found = await chances(demo, samples, "speculation.adapt=false")
    print(found)
    assert min(found) > 0.001, found


@pytest.mark.long
async def test_a_fault_is_found(demo: HFLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    speculation = launch._speculation

    def faulty(*args: Any) -> dict[str, Any]:
        return speculation(*args) | {"worker_cls": "tests.engine.faulty.CredulousWorker"}

    monkeypatch.setattr(launch, "_speculation", faulty)
    found = await chances(demo, 800, "speculation.adapt=false")
    assert max(found) < 1e-6, found
