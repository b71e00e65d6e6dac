"""Random requests whose experts a router chooses, among others, each against the reference of what was chosen.

One of the experts is a mixture: what the router makes of a prompt decides its weights.
"""

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
from server.engine.weights import AdapterTaskVector
from server.errors import ServerError
from tests.engine.driver import Case, drafted, draw_cases, send_all
from tests.engine.engines import counter, running
from tests.engine.families import ENGINE, windows_among_experts
from tests.engine.judge import Verdict, judge
from tests.engine.test_random_batches import CHUNKS, COMPILED, DRAFTED, EXPERTS, LONG, TIGHT, TWO_WORKERS, prepare
from tests.hf_loop import HFLoop, Settings
from tests.models import make_adapter, make_expert, make_family

MIXTURE, PARTS = "mixed", ["green", "gold"]
ALL = [*EXPERTS, MIXTURE]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 family with a mixture, and a router that chooses by what has no meaning."""
    config = make_family(tmp_path_factory.mktemp("routed"))
    shared = make_expert(config.parent / MIXTURE, config.parent / "base", seed=4)
    projections = [["q_proj", "v_proj", "down_proj"], ["k_proj", "v_proj", "o_proj", "gate_proj"]]
    for seed, (part, modules) in enumerate(zip(PARTS, projections, strict=True)):
        make_adapter(config.parent / part, shared, rank=3 + seed, target_modules=modules, seed=seed)
    settings, base = yaml.safe_load(config.read_text()), config.parent / "base"
    width = AutoModelForCausalLM.from_pretrained(base).config.hidden_size
    weight = torch.randn(5, width, generator=torch.Generator().manual_seed(1)) / width**0.8
    router = Router(weight, torch.zeros(5), ("none", "blue", "red", *PARTS), 0.25, fingerprint(base))
    router.save(config.parent / "router.safetensors")
    settings["experts"][MIXTURE] = {"model": f"./{MIXTURE}", "parts": {part: f"./{part}" for part in PARTS}}
    settings["presets"] = {"auto": {"experts": ALL, "route": "router.safetensors"}, "giant": {"weighting": "none"}}
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    return config


class Mixing(HFLoop):
    """The reference, whose mixture is what a router made of it last."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ALL)
        model = self._members[-1]
        self._shared = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self._changes = [AdapterTaskVector(folder / part) for part in PARTS]

    def mix(self, shares: Sequence[float]) -> None:
        """Make the mixture that of these shares of its parts."""
        state = dict(self._shared)
        for share, change in zip(shares, self._changes, strict=True):
            for name, tensor in self._shared.items():
                if (delta := change.delta(name, tensor)) is not None:
                    state[name] = state[name] + share * delta
        self._members[-1].load_state_dict(state)


@pytest.fixture(scope="module")
def oracle(family: Path) -> Mixing:
    return Mixing(family.parent)


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
    family: Path, oracle: Mixing, monkeypatch: pytest.MonkeyPatch, number: int, seed: int, options: Sequence[str]
) -> None:
    prepare(monkeypatch, options)
    cases = draw_cases(number, seed, EXPERTS, longest_prompt=100, longest_answer=24)
    cases = [_routed(_mixing(case, place), place) for place, case in enumerate(cases)]
    if DRAFTED[0] in options:
        cases = drafted(cases, "auto")
    async with running(family, *TIGHT, *options) as engine:
        preempted, hits = counter("vllm:num_preemptions"), counter("vllm:prefix_cache_hits")
        answers = await asyncio.wait_for(send_all(engine, cases, ALL), 900)
        preempted, hits = counter("vllm:num_preemptions") - preempted, counter("vllm:prefix_cache_hits") - hits
    verdict, chosen, mixtures = Verdict(), Counter[tuple[str, ...]](), set[tuple[float, ...]]()
    for case, answer in zip(cases, answers, strict=True):
        if answer is None:
            continue
        judged, shares = case, case.shares.get(ALL.index(MIXTURE), [0.0] * len(PARTS))
        if case.route is not None:
            assert answer.choice is not None
            names = tuple(ALL[expert] for expert in answer.choice.experts)
            chosen[names] += 1
            judged = replace(case, settings=_of_experts(case.settings, names))
            shares = answer.choice.shares.get(ALL.index(MIXTURE), shares)
        mixtures.add(tuple(shares))
        oracle.mix(shares)
        verdict += judge(oracle, judged, answer)
    print(f"{verdict}, {dict(chosen)}, {len(mixtures)} mixtures, {preempted:g} preemptions, {hits:g} tokens found")
    assert preempted
    assert hits
    assert len(chosen) >= 4
    assert len(mixtures) >= 10
    assert verdict.ties <= verdict.tokens // 500


@LONG
async def test_beside_sliding_windows_nothing_is_routed(tmp_path: Path) -> None:
    """A late expert would have to write what the windows have freed."""
    windows_among_experts(tmp_path)
    width = AutoModelForCausalLM.from_pretrained(tmp_path / "base").config.hidden_size
    router = Router(torch.zeros(2, width), torch.zeros(2), ("blue", "red"), 0.3, fingerprint(tmp_path / "base"))
    router.save(tmp_path / "router.safetensors")
    settings = {
        "large": {"model": "./large"},
        "base": {"model": "./base"},
        "experts": {name: {"model": f"./{name}"} for name in EXPERTS},
        "presets": {"auto": {"experts": EXPERTS, "route": "router.safetensors"}},
        "engine": yaml.safe_load(ENGINE),
    }
    (tmp_path / "fusion.yaml").write_text(yaml.safe_dump(settings))
    async with running(tmp_path / "fusion.yaml") as engine:
        with pytest.raises(ServerError, match="beside layers with sliding windows experts cannot be chosen late"):
            await engine.learn_room()


def _mixing(case: Case, place: int) -> Case:
    """Two requests of three have the mixture among their experts, and say what it is unless they are routed."""
    settings, shares = case.settings, {ALL.index(MIXTURE): [round(place / 200, 2), round(1 - place / 300, 2)]}
    if settings.weighting == "none" or place % 3 == 0:
        return case
    case = replace(case, shares=shares if place % 3 == 2 else {})
    if settings.weighting == "alone":
        return replace(case, settings=replace(settings, experts=(MIXTURE,)))
    alpha = (*settings.alpha, 0.8) if settings.alpha else ()
    return replace(case, settings=replace(settings, experts=(*settings.experts, MIXTURE), alpha=alpha))


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
