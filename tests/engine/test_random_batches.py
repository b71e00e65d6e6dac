"""Random requests through a real engine under everything that a batch goes through, each against the reference."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.driver import Case, draw_cases, send, send_all
from tests.engine.engines import counter, running
from tests.engine.judge import Verdict, judge
from tests.hf_loop import HFLoop

EXPERTS = ["red", "blue"]
# Eight slots, and room for less than half of what eight requests may need: vLLM must preempt.
TIGHT = ["engine.block_size=32", "engine.max_model_len=160", "engine.num_gpu_blocks_override=12"]
CHUNKS = "engine.max_num_batched_tokens=32"
NO_PREFIXES = "engine.enable_prefix_caching=false"
TWO_WORKERS = "engine.tensor_parallel_size=2"
LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("number", "seed", "options"),
    [
        pytest.param(40, 1, [CHUNKS], id="chunks"),
        pytest.param(200, 2, [CHUNKS], id="200-chunks", marks=LONG),
        pytest.param(200, 3, [NO_PREFIXES], id="200-no-prefixes", marks=LONG),
        pytest.param(200, 4, [], id="200-prefixes", marks=LONG),
        pytest.param(200, 5, [CHUNKS, TWO_WORKERS], id="200-two-workers", marks=LONG),
    ],
)
async def test_every_request_is_the_references(
    family: Path, oracle: HFLoop, monkeypatch: pytest.MonkeyPatch, number: int, seed: int, options: list[str]
) -> None:
    if TWO_WORKERS in options:
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    cases = draw_cases(number, seed, EXPERTS, longest_prompt=100, longest_answer=24)
    async with running(family, *TIGHT, *options) as engine:
        preempted, prefix_hits = counter("vllm:num_preemptions"), counter("vllm:prefix_cache_hits")
        answers = await asyncio.wait_for(send_all(engine, cases, EXPERTS), 900)
        preempted = counter("vllm:num_preemptions") - preempted
        prefix_hits = counter("vllm:prefix_cache_hits") - prefix_hits
        seeded = [place for place, case in enumerate(cases) if not case.greedy and answers[place] is not None]
        alone = {place: await send(engine, _alone(cases[place]), f"alone-{place}", EXPERTS) for place in seeded[:50]}
    assert preempted, "the cache is small enough to preempt"
    assert bool(prefix_hits) == (NO_PREFIXES not in options)

    verdict, gone = Verdict(), 0
    for case, answer in zip(cases, answers, strict=True):
        if answer is None:
            gone += 1
        else:
            verdict += judge(oracle, case, answer)
    differing = [place for place, answer in alone.items() if answer.tokens != _tokens(answers[place])]
    for place in differing:
        verdict += judge(oracle, cases[place], alone[place])
    print(f"{verdict}, {gone} clients left, {preempted:g} preemptions, {len(differing)} of {len(alone)} differ alone")
    assert gone, "some clients went away"
    assert verdict.ties <= verdict.tokens // 500
    # One that differs when it runs alone must have met a tie, which the reference confirmed.
    assert len(differing) <= verdict.ties


def _alone(case: Case) -> Case:
    return replace(case, arrives=0.0, patience=None)


def _tokens(answer: object) -> list[list[int]] | None:
    return getattr(answer, "tokens", None)
