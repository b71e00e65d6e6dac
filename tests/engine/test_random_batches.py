"""Random requests through a real engine under everything that a batch goes through, each against the reference."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs

from server.engine import launch
from tests.engine.driver import Case, drafted, draw_cases, send, send_all
from tests.engine.engines import counter, running
from tests.engine.judge import Verdict, judge
from tests.hf_loop import HFLoop

EXPERTS = ["red", "blue"]
# Eight slots, and room for less than half of what eight requests may need: vLLM must preempt.
TIGHT = ["engine.block_size=32", "engine.max_model_len=160", "engine.num_gpu_blocks_override=12"]
CHUNKS = "engine.max_num_batched_tokens=32"
NO_PREFIXES = "engine.enable_prefix_caching=false"
TWO_WORKERS = "engine.tensor_parallel_size=2"
COMPILED = "engine.enforce_eager=false"
ASYNC = "async"  # no option: vLLM 0.32 turns asynchronous scheduling off on CPUs
EVERYONE = "everyone"  # no option: every member runs for every request
DRAFT = "speculation.draft="
# Who drafts, and how many tokens.
FIXED = "speculation.adapt=false"
ADAPTED = ["speculation.draft=auto", "speculation.tokens=3"]
DRAFTED = [*ADAPTED, FIXED]
BY_BASE = ["speculation.draft=base", "speculation.tokens=2"]
BY_RED = ["speculation.draft=red", "speculation.tokens=5", FIXED]
LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("number", "seed", "options"),
    [
        pytest.param(40, 1, [CHUNKS], id="chunks"),
        pytest.param(60, 11, [CHUNKS, *ADAPTED], id="drafted"),
        pytest.param(200, 2, [CHUNKS], id="200-chunks", marks=LONG),
        pytest.param(200, 3, [NO_PREFIXES], id="200-no-prefixes", marks=LONG),
        pytest.param(200, 4, [], id="200-prefixes", marks=LONG),
        pytest.param(200, 5, [CHUNKS, TWO_WORKERS], id="200-two-workers", marks=LONG),
        pytest.param(200, 6, [CHUNKS, COMPILED], id="200-compiled", marks=LONG),
        pytest.param(200, 7, [CHUNKS, ASYNC], id="200-async", marks=LONG),
        pytest.param(200, 8, [CHUNKS, EVERYONE], id="200-everyone", marks=LONG),
        pytest.param(200, 12, [CHUNKS, *DRAFTED], id="200-drafted", marks=LONG),
        pytest.param(200, 13, DRAFTED, id="200-drafted-prefixes", marks=LONG),
        pytest.param(200, 14, [CHUNKS, *BY_BASE, TWO_WORKERS], id="200-drafted-two-workers", marks=LONG),
        pytest.param(200, 15, [CHUNKS, *BY_RED, COMPILED], id="200-drafted-compiled", marks=LONG),
    ],
)
async def test_every_request_is_the_references(
    family: Path, oracle: HFLoop, monkeypatch: pytest.MonkeyPatch, number: int, seed: int, options: list[str]
) -> None:
    await check_batch(family, oracle, monkeypatch, number, seed, options)


async def check_batch(
    family: Path, oracle: HFLoop, monkeypatch: pytest.MonkeyPatch, number: int, seed: int, options: Sequence[str]
) -> None:
    """Send so many random requests at once, and judge each."""
    prepare(monkeypatch, options)
    if EVERYONE in options:
        monkeypatch.setattr(launch, "fusion_config", for_everyone(launch.fusion_config))
    cases = draw_cases(number, seed, EXPERTS, longest_prompt=100, longest_answer=24)
    settings = [option for option in options if "=" in option]
    draft = next((option.removeprefix(DRAFT) for option in options if option.startswith(DRAFT)), None)
    if draft is not None:
        cases = drafted(cases, draft)
    async with running(family, *TIGHT, *settings) as engine:
        assert engine.vllm_config.scheduler_config.async_scheduling == (ASYNC in options)
        preempted, prefix_hits = counter("vllm:num_preemptions"), counter("vllm:prefix_cache_hits")
        answers = await asyncio.wait_for(send_all(engine, cases, EXPERTS), 900)
        preempted = counter("vllm:num_preemptions") - preempted
        prefix_hits = counter("vllm:prefix_cache_hits") - prefix_hits
        proposed, accepted = (
            counter("vllm:spec_decode_num_draft_tokens"),
            counter("vllm:spec_decode_num_accepted_tokens"),
        )
        (counts, *_), *_ = await engine.on_workers("read_fusion_counts")
        seeded = [place for place, case in enumerate(cases) if not case.greedy and answers[place] is not None]
        # Without speculation too: it changes no token.
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
    drafts = f"{accepted:g} of {proposed:g} drafts accepted; steps by number: {counts['ahead']}"
    print(
        f"{verdict}, {gone} clients left, {preempted:g} preemptions, {len(differing)} of {len(alone)} differ alone, "
        f"{drafts}"
    )
    assert draft is None or 0 < accepted < proposed
    assert (sum(map(bool, counts["ahead"])) > 1) == (draft is not None and FIXED not in options)
    assert gone, "some clients went away"
    assert verdict.ties <= verdict.tokens // 500
    # One that differs when it runs alone must have met a tie, which the reference confirmed.
    assert len(differing) <= verdict.ties


def prepare(monkeypatch: pytest.MonkeyPatch, options: Sequence[str]) -> None:
    """What workers and asynchronous scheduling need beside the configuration."""
    if TWO_WORKERS in options:
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    if ASYNC in options:
        monkeypatch.setattr(AsyncEngineArgs, "create_engine_config", asynchronous(AsyncEngineArgs.create_engine_config))


def asynchronous(create: Callable[..., VllmConfig]) -> Callable[..., VllmConfig]:
    """The engine's configuration with what vLLM's CPU platform switched off."""

    def configure(*args: Any, **kwargs: Any) -> VllmConfig:
        config = create(*args, **kwargs)
        config.scheduler_config.async_scheduling = True
        return config

    return configure


def for_everyone(make: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """What the composite reads, asking that no member is left out of a step."""
    return lambda *args: make(*args) | {"everyone": True}


def _alone(case: Case) -> Case:
    return replace(case, arrives=0.0, patience=None, draft=None)


def _tokens(answer: object) -> list[list[int]] | None:
    return getattr(answer, "tokens", None)
