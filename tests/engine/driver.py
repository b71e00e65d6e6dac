"""Draws random requests and sends them to an engine at random moments; some are dropped half way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from vllm import SamplingParams
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind

from fusion_kernels import Weighting
from server.engine.client import FusionEngine
from server.engine.pairs import Pairs
from server.engine.request_trace import TokenTrace
from server.engine.routing.choosing import Choice
from server.engine.settings import SIDES, FusionSettings, Pair, Route
from server.engine.speculation.drafter import with_drafter
from tests.hf_loop import Settings

FIRST_ID, LAST_ID = 3, 511  # without the special ids


@dataclass(frozen=True)
class Case:
    """One request, when it arrives, and when its client goes away."""

    prompt: list[int]
    settings: Settings
    params: dict[str, Any]
    trace: bool = False
    arrives: float = 0.0
    patience: float | None = None
    """Seconds after which the client goes away."""
    draft: str | None = None
    """Who drafts for it, as the configuration says it; `None`: it does not speculate."""
    route: Route | None = None
    """What chooses among its experts; `None`: all of them steer."""
    shares: dict[int, list[float]] = field(default_factory=dict)
    """Of experts that are mixtures, those of their parts; of one that is routed, whatever the router says."""

    @property
    def choices(self) -> int:
        choices: int = self.params.get("n", 1)
        return choices

    @property
    def greedy(self) -> bool:
        return not self.params["temperature"]


@dataclass
class Answer:
    """What came back: tokens, logprobs and traces by choice, and the prompt's logprobs."""

    tokens: list[list[int]]
    logprobs: list[list[float]]
    traces: list[list[TokenTrace]]
    prompt_logprobs: list[float] = field(default_factory=list)
    choice: Choice | None = None
    """What a router chose."""


def draw_cases(
    number: int, seed: int, experts: Sequence[str], *, longest_prompt: int, longest_answer: int
) -> list[Case]:
    """Random requests; some prompts begin alike, so that a prefix cache has something to find."""
    rng = random.Random(seed)
    prefixes = [_ids(rng, rng.randint(33, max(34, longest_prompt - 8))) for _ in range(4)]
    arrives, cases = 0.0, []
    for _ in range(number):
        arrives += rng.expovariate(30)
        prompt = _ids(rng, rng.randint(1, longest_prompt))
        if rng.random() < 0.3:
            prefix = rng.choice(prefixes)
            prompt = (prefix[: rng.randint(1, len(prefix))] + prompt)[:longest_prompt]
        patience = rng.uniform(0, 0.5) if rng.random() < 0.25 else None
        params = _params(rng, longest_answer)
        cases.append(Case(prompt, draw_settings(rng, experts), params, rng.random() < 0.25, arrives, patience))
    return cases


def drafted(cases: Sequence[Case], draft: str) -> list[Case]:
    """The same requests, most of which speculate."""
    return [case if place % 5 == 4 else replace(case, draft=draft) for place, case in enumerate(cases)]


def draw_settings(rng: random.Random, experts: Sequence[str]) -> Settings:
    """A weighting of any kind, over one or several experts, with random weights or bounds."""
    weighting = rng.choice(["none", "static", "kl", "kl", "kl-grid", "kl-safe", "alone"])
    used = tuple(name for name in experts if rng.random() < 0.6) or (rng.choice(experts),)
    if weighting == "none":
        return Settings("none")
    if weighting == "alone":
        return Settings("alone", used[:1])
    if weighting == "static":
        return Settings("static", used, tuple(round(rng.uniform(-1, 2), 2) for _ in used))
    return Settings(weighting, used, alpha_max=rng.choice([2.0, 2.0, 0.7, 1.3]))


def _params(rng: random.Random, longest_answer: int) -> dict[str, Any]:
    params: dict[str, Any] = {
        "temperature": 0,
        "max_tokens": rng.randint(1, longest_answer),
        "ignore_eos": rng.random() < 0.8,
        "logprobs": rng.choice([None, 0]),
        "prompt_logprobs": rng.choice([None, None, None, 0]),
        "output_kind": rng.choice([RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY]),
    }
    if rng.random() < 0.5:
        params |= {
            "temperature": rng.choice([0.3, 0.8, 1.0, 1.4]),
            "seed": rng.randrange(2**31),
            "n": rng.choice([1, 1, 2, 3]),
            "top_k": rng.choice([0, 0, 5, 50]),
            "top_p": rng.choice([1.0, 1.0, 0.9]),
        }
    return params


def _ids(rng: random.Random, number: int) -> list[int]:
    return [rng.randint(FIRST_ID, LAST_ID) for _ in range(number)]


def fusion_settings(settings: Settings, experts: Sequence[str], pairs: Pairs | None = None) -> FusionSettings:
    """What the engine understands, with experts by their place, and members by their numbers."""
    used = tuple(experts.index(name) for name in settings.experts)
    found = FusionSettings(
        weighting=Weighting.named(settings.weighting),
        experts=used,
        alpha=settings.alpha,
        alpha_max=settings.alpha_max,
    )
    if pairs is None:
        return found
    own = {(name, side): list(ids) for name, side, ids in settings.prompts}
    prompts: dict[int, list[int]] = {}
    sides: list[Pair] = []
    for name, expert in zip(settings.experts, used, strict=True):
        members = []
        for side, shared, other in zip(SIDES, pairs.shared(expert), pairs.own(expert), strict=True):
            members.append(other if (name, side) in own else shared)
            if (name, side) in own:
                prompts[other] = own[name, side]
        sides.append(Pair(*members))
    return replace(found, pairs=tuple(sides), prompts=prompts)


async def send(
    engine: FusionEngine, case: Case, name: str, experts: Sequence[str], pairs: Pairs | None = None
) -> Answer:
    """Send one request and collect its answer."""
    settings = replace(fusion_settings(case.settings, experts, pairs), shares=case.shares)
    heard: list[Choice] = []
    routed = None if case.route is None else engine.open_route(case.route.router, heard.append)
    if case.route is not None and routed is not None:
        settings = replace(settings, route=case.route._replace(name=f"{routed.key}/0"))
    if case.draft is not None:
        settings = with_drafter(settings, case.draft, experts, has_base=True)
        if settings.drafter in settings.prompts:
            settings = replace(settings, drafter=None)
    trace = engine.open_trace() if case.trace else None
    if trace is not None:
        settings = replace(settings, trace=trace.prompt_key(0))
    params = SamplingParams(**case.params)
    settings.attach(params)
    choices = range(case.choices)
    answer = Answer([[] for _ in choices], [[] for _ in choices], [[] for _ in choices])
    async with aclosing(engine.generate(TokensPrompt(prompt_token_ids=case.prompt), params, name)) as outputs:
        async for output in outputs:
            for choice in output.outputs:
                answer.tokens[choice.index] += choice.token_ids
                for token, entry in zip(choice.token_ids, choice.logprobs or (), strict=False):
                    assert entry is not None
                    answer.logprobs[choice.index].append(entry[token].logprob)
                if trace is not None:
                    taken = trace.take(choice.index)
                    assert [token.token_id for token in taken] == list(choice.token_ids)
                    answer.traces[choice.index] += taken
            if output.prompt_logprobs and not answer.prompt_logprobs:
                answer.prompt_logprobs = [
                    entry[token].logprob
                    for token, entry in zip(case.prompt, output.prompt_logprobs, strict=True)
                    if entry is not None
                ]
    answer.choice = next(iter(heard), None)
    return answer


async def send_all(
    engine: FusionEngine, cases: Sequence[Case], experts: Sequence[str], pairs: Pairs | None = None
) -> list[Answer | None]:
    """Send all, each when it arrives; `None` stands for the answer of a client that went away."""

    async def one(place: int, case: Case) -> Answer | None:
        await asyncio.sleep(case.arrives)
        try:
            async with asyncio.timeout(case.patience):
                return await send(engine, case, f"together-{place}", experts, pairs)
        except TimeoutError:
            return None

    return await asyncio.gather(*(one(place, case) for place, case in enumerate(cases)))
