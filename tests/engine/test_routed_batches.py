"""Random requests whose experts a router chooses, among others, each against the reference of what was chosen."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from server.engine.routing.router import Router, fingerprint
from server.engine.settings import Route
from tests.engine.driver import Case, drafted, draw_cases, send_all
from tests.engine.engines import counter, running
from tests.engine.judge import Verdict, judge
from tests.engine.test_random_batches import CHUNKS, COMPILED, DRAFTED, EXPERTS, LONG, TIGHT, TWO_WORKERS, prepare
from tests.hf_loop import HFLoop, Settings
from tests.models import make_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 family, and a router that chooses by what has no meaning."""
    config = make_family(tmp_path_factory.mktemp("routed"))
    settings, base = yaml.safe_load(config.read_text()), config.parent / "base"
    width = AutoModelForCausalLM.from_pretrained(base).config.hidden_size
    weight = torch.randn(3, width, generator=torch.Generator().manual_seed(1)) / width**0.25
    router = Router(weight, torch.zeros(3), ("none", "blue", "red"), 0.3, fingerprint(base))
    router.save(config.parent / "router.safetensors")
    settings["presets"] = {"auto": {"experts": EXPERTS, "route": "router.safetensors"}, "giant": {"weighting": "none"}}
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    return config


@pytest.fixture(scope="module")
def oracle(family: Path) -> HFLoop:
    return HFLoop(family.parent, EXPERTS)


@pytest.mark.parametrize(
    ("number", "seed", "options"),
    [
        pytest.param(60, 31, [CHUNKS], id="chunks"),
        pytest.param(200, 32, [CHUNKS], id="200-chunks", marks=LONG),
        pytest.param(200, 33, [], id="200-prefixes", marks=LONG),
        pytest.param(200, 34, [CHUNKS, *DRAFTED], id="200-drafted", marks=LONG),
        pytest.param(200, 35, [CHUNKS, TWO_WORKERS], id="200-two-workers", marks=LONG),
        pytest.param(200, 36, [CHUNKS, COMPILED], id="200-compiled", marks=LONG),
    ],
)
async def test_every_request_is_the_references(
    family: Path, oracle: HFLoop, monkeypatch: pytest.MonkeyPatch, number: int, seed: int, options: Sequence[str]
) -> None:
    prepare(monkeypatch, options)
    cases = draw_cases(number, seed, EXPERTS, longest_prompt=100, longest_answer=24)
    cases = [_routed(case, place) for place, case in enumerate(cases)]
    if DRAFTED[0] in options:
        cases = drafted(cases, "auto")
    async with running(family, *TIGHT, *options) as engine:
        preempted, hits = counter("vllm:num_preemptions"), counter("vllm:prefix_cache_hits")
        answers = await asyncio.wait_for(send_all(engine, cases, EXPERTS), 900)
        preempted, hits = counter("vllm:num_preemptions") - preempted, counter("vllm:prefix_cache_hits") - hits
    verdict, chosen = Verdict(), Counter[tuple[str, ...]]()
    for case, answer in zip(cases, answers, strict=True):
        if answer is None:
            continue
        judged = case
        if case.route is not None:
            assert answer.choice is not None
            names = tuple(EXPERTS[expert] for expert in answer.choice.experts)
            chosen[names] += 1
            judged = replace(case, settings=_of_experts(case.settings, names))
        verdict += judge(oracle, judged, answer)
    print(f"{verdict}, chosen {dict(chosen)}, {preempted:g} preemptions, {hits:g} tokens found")
    assert preempted
    assert hits
    assert len(chosen) >= 3
    assert verdict.ties <= verdict.tokens // 500


def _routed(case: Case, place: int) -> Case:
    """Two requests of three are routed, where they have experts to choose from."""
    if case.settings.weighting == "none" or place % 3 == 2:
        return case
    top = 1 if case.settings.weighting == "alone" else (1, 2, None)[place % 3]
    return replace(case, route=Route(0, top, ""), params=case.params | {"prompt_logprobs": None})


def _of_experts(settings: Settings, chosen: Sequence[str]) -> Settings:
    """The settings over some of their experts."""
    if not chosen:
        return Settings("none")
    kept = [place for place, name in enumerate(settings.experts) if name in chosen]
    alpha = tuple(settings.alpha[place] for place in kept) if settings.alpha else ()
    return replace(settings, experts=tuple(settings.experts[place] for place in kept), alpha=alpha)
