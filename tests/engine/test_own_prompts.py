"""Members that read prompts of their own, through a real engine, each request against a plain loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.config import load_config
from server.engine.pairs import Pairs
from tests.engine.driver import Case, drafted, draw_cases, send_all
from tests.engine.engines import counter, running
from tests.engine.judge import Verdict, judge
from tests.engine.pair_loop import PairLoop
from tests.engine.test_random_batches import ADAPTED, ASYNC, CHUNKS, DRAFTED, LONG, NO_PREFIXES, TWO_WORKERS, prepare
from tests.models import make_family

BLOCK = 32
# Eight slots, and room for less than half of what eight requests may need: vLLM must preempt.
TIGHT = [f"engine.block_size={BLOCK}", "engine.max_model_len=192", "engine.num_gpu_blocks_override=16"]

EXPERTS: dict[str, dict[str, Any]] = {
    "red": {"model": "red"},
    "blue": {"model": "blue", "against": "large", "prompt": {"against": {}}},
    "guide": {"use": "large", "against": "large", "prompt": {"with": {}, "against": {}}},
    "reward": {"use": "red", "against": "none", "prompt": {"with": {}}},
    "contrast": {"use": "large", "against": "blue"},
}
PAIRS: dict[str, tuple[str, str | None]] = {
    "red": ("red", "base"),
    "blue": ("blue", "large"),
    "guide": ("large", "large"),
    "reward": ("red", None),
    "contrast": ("large", "blue"),
}
OWN = [("red", "with"), ("red", "against"), ("blue", "with"), ("blue", "against"), ("guide", "with")]
OWN += [("guide", "against"), ("guide", "against"), ("reward", "with")]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family whose experts are compared in every way that there is."""
    config = make_family(tmp_path_factory.mktemp("pairs"))
    settings = yaml.safe_load(config.read_text())
    settings["experts"] = EXPERTS
    settings["presets"] = {"giant": {"weighting": "none"}}
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    return config


@pytest.fixture(scope="module")
def oracle(family: Path) -> PairLoop:
    return PairLoop(family.parent, PAIRS)


def with_prompts(cases: Sequence[Case], seed: int, longest: int) -> list[Case]:
    """The same requests over two experts at most, with prompts of their own for some members: shorter and longer."""
    rng = random.Random(seed)
    few = [tuple(rng.choices(range(3, 512), k=rng.randint(1, longest))) for _ in range(6)]
    made = []
    for case in cases:
        settings = case.settings
        if settings.weighting == "alone":
            settings = replace(settings, experts=(rng.choice([name for name in EXPERTS if name != "contrast"]),))
        elif settings.experts:
            settings = replace(settings, experts=tuple(rng.sample(list(EXPERTS), rng.choice([1, 2]))))
            settings = replace(settings, alpha=settings.alpha and tuple(rng.uniform(-1, 2) for _ in settings.experts))
        prompts: dict[tuple[str, str], tuple[int, ...]] = {}
        for name, side in OWN:
            if name in settings.experts and rng.random() < 0.5 and (side == "with" or settings.weighting != "alone"):
                ids = rng.choices(range(3, 512), k=rng.randint(1, longest))
                prompts[name, side] = rng.choice(few) if rng.random() < 0.5 else tuple(ids)
        if {"red", "reward"} <= set(settings.experts) and ("red", "with") in prompts:
            # Without a prompt of its own `reward` is `red`, which reads one prompt of a request.
            prompts.setdefault(("reward", "with"), few[0])
        if {"blue", "contrast"} <= set(settings.experts):  # `blue` is on both sides
            prompts.pop(("blue", "with"), None)
        settings = replace(settings, prompts=tuple((*side, ids) for side, ids in prompts.items()))
        params = {**case.params, "prompt_logprobs": None} if prompts else case.params
        prompt = rng.choice(few) if rng.random() < 0.2 else case.prompt
        made.append(replace(case, prompt=list(prompt), settings=settings, params=params))
    return made


@pytest.mark.parametrize(
    ("number", "seed", "options"),
    [
        pytest.param(40, 1, [CHUNKS], id="chunks"),
        pytest.param(200, 2, [CHUNKS], id="200-chunks", marks=LONG),
        pytest.param(200, 3, [NO_PREFIXES], id="200-no-prefixes", marks=LONG),
        pytest.param(200, 4, [], id="200-prefixes", marks=LONG),
        pytest.param(200, 5, [CHUNKS, TWO_WORKERS], id="200-two-workers", marks=LONG),
        pytest.param(200, 6, [CHUNKS, ASYNC], id="200-async", marks=LONG),
        pytest.param(200, 7, [CHUNKS, *ADAPTED], id="200-drafted", marks=LONG),
        pytest.param(200, 8, [CHUNKS, *DRAFTED], id="200-drafted-fixed", marks=LONG),
    ],
)
async def test_every_request_is_the_plain_loops(
    family: Path, oracle: PairLoop, monkeypatch: pytest.MonkeyPatch, number: int, seed: int, options: list[str]
) -> None:
    await check_pairs(family, oracle, monkeypatch, number, seed, options)


async def check_pairs(
    family: Path, oracle: PairLoop, monkeypatch: pytest.MonkeyPatch, number: int, seed: int, options: Sequence[str]
) -> None:
    """Send so many random requests at once, many with prompts of their own for some members, and judge each."""
    prepare(monkeypatch, options)
    cases = draw_cases(number, seed, list(EXPERTS), longest_prompt=100, longest_answer=24)
    cases = with_prompts(cases, seed, 120)
    if options[1 : 1 + len(ADAPTED)] == ADAPTED:
        cases = drafted(cases, "auto")
    overrides = [*TIGHT, *(option for option in options if "=" in option)]
    pairs = Pairs(load_config(family, overrides))
    async with running(family, *overrides) as engine:
        assert engine.vllm_config.scheduler_config.async_scheduling == (ASYNC in options)
        preempted, hits = counter("vllm:num_preemptions"), counter("vllm:prefix_cache_hits")
        answers = await asyncio.wait_for(send_all(engine, cases, list(EXPERTS), pairs), 900)
        preempted, hits = counter("vllm:num_preemptions") - preempted, counter("vllm:prefix_cache_hits") - hits
    verdict, gone = Verdict(), 0
    for case, answer in zip(cases, answers, strict=True):
        if answer is None:
            gone += 1
        else:
            verdict += judge(oracle, case, answer)
    own = sum(bool(case.settings.prompts) for case in cases)
    print(f"{verdict}, {own} with own prompts, {gone} clients left, {preempted:g} preemptions, {hits:g} tokens found")
    assert own > number // 4
    assert preempted, "the cache is small enough to preempt"
    assert bool(hits) == (NO_PREFIXES not in options)
    assert gone, "some clients went away"
    assert verdict.ties <= verdict.tokens // 500
