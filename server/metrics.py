"""Metrics of the fusion: the workers' counters (`server.engine.aggregates`) as Prometheus families beside vLLM's own.

While tokens are generated, and once after the last one, a task reads the workers every `READ_SECONDS`, between two of
the engine's steps; a scrape shows the last reading. So a scrape never waits for the engine, nor fails with it, and an
idle engine is left alone: vLLM 0.32's workers look for more work without pause for a second after each message. Labels
are names of the configuration: clients cannot add series.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from fastapi import FastAPI
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from fusion_kernels import Weighting
from server.config import Config
from server.config.adapters import is_spare
from server.config.schema import LARGE, NONE
from server.engine.aggregates import ALPHA_BUCKETS, KL_BUCKETS, Counts
from server.engine.client import FusionEngine

READ_SECONDS = 2.0

DIVERGENCES = ("fused_large", "large_fused")

logger = logging.getLogger(__name__)


def attach(app: FastAPI, engine: FusionEngine, config: Config) -> Callable[[], Awaitable[None]]:
    """Show the engine's fusion metrics at `/metrics` for as long as the app runs; call in the app's event loop.

    Returns:
        What reads the engine's counters at once.
    """
    metrics = FusionMetrics(config)
    # The app holds the task, which would otherwise be collected as garbage.
    app.state.fusion_metrics = asyncio.get_running_loop().create_task(_follow(metrics, engine))
    return partial(_read, metrics, engine)


async def _follow(metrics: FusionMetrics, engine: FusionEngine) -> None:
    REGISTRY.register(metrics)
    try:
        while not engine.errored:
            await engine.asked.wait()
            engine.asked.clear()
            again = engine.busy
            await asyncio.sleep(READ_SECONDS)
            try:
                await _read(metrics, engine)
            except Exception as error:
                if not engine.errored:
                    logger.warning("The fusion metrics could not be read; trying again: %s", error)
                again = True
            if again:
                engine.asked.set()
    finally:
        REGISTRY.unregister(metrics)


async def _read(metrics: FusionMetrics, engine: FusionEngine) -> None:
    # One rank of a tensor-parallel group has the logits, the first.
    metrics.update([workers[0] for workers in await engine.on_workers("read_fusion_counts")])


class _Names(NamedTuple):
    presets: list[str]
    weightings: list[str]  # by `Weighting`
    experts: list[str]


class FusionMetrics(Collector):
    """The families of one configuration, as of the last `update`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._counts = self._zero()
        self._reported: set[str] = set()

    @property
    def _names(self) -> _Names:
        """As they are: adapters come and go."""
        return _Names(
            presets=list(self._config.presets),
            weightings=[str(weighting) for weighting in Weighting],
            experts=list(self._config.experts),
        )

    def update(self, engines: list[Counts]) -> None:
        """Take a reading of every engine, and log the members that it shows broken for the first time."""
        counts: Any = {name: np.sum([engine[name] for engine in engines], axis=0).tolist() for name in engines[0]}  # type: ignore[literal-required]
        broken: Counter[str] = sum(map(self._broken, counts["broken"]), Counter())
        for member, tokens in broken.items():
            if tokens and member not in self._reported:
                self._reported.add(member)
                who = f"expert '{member}'" if member in self._names.experts else f"the {member}"
                who = "the large model" if member == LARGE else who
                logger.error(
                    "The logits of %s hold NaN or infinity; the large model answers alone at such tokens (%d so far). "
                    "They are counted in fusion_solver_failures_total; this is said once.",
                    who,
                    tokens,
                )
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Yield the families; a preset's own weighting and members have series from the start, others once seen."""
        counts, names = self._counts, self._names
        tokens = CounterMetricFamily(
            "fusion_tokens_total", "Generated tokens by preset and weighting.", labels=["preset", "weighting"]
        )
        failures = CounterMetricFamily(
            "fusion_solver_failures_total",
            "Generated tokens at which the large model answered alone because a member's logits held NaN or infinity.",
            labels=["preset", "member"],
        )
        alpha = HistogramMetricFamily(
            "fusion_alpha",
            "Weight of an expert at the generated tokens that used it.",
            labels=["preset", "expert"],
        )
        divergence = HistogramMetricFamily(
            "fusion_kl",
            "How far fusion moved the large model at a generated token, KL(fused || large) and KL(large || fused) in "
            "nats.",
            labels=["preset", "divergence"],
        )
        for index, (preset, settings) in enumerate(self._config.presets.items()):
            if is_spare(preset) or settings.arms:
                continue
            for weighting, number in zip(names.weightings, counts["tokens"][index], strict=True):
                if number or weighting == settings.weighting:
                    tokens.add_metric([preset, weighting], number)
            own = {member for name in settings.experts for member in (name, self._config.experts[name].against)}
            for member, number in self._broken(counts["broken"][index]).items():
                if not is_spare(member) and (number or member in own):
                    failures.add_metric([preset, member], number)
            for expert, sizes, total in zip(
                names.experts, counts["alpha"][index], counts["alpha_sum"][index], strict=True
            ):
                if not is_spare(expert) and (any(sizes) or expert in settings.experts):
                    alpha.add_metric([preset, expert], _cumulative(ALPHA_BUCKETS, sizes), total)
            for direction, sizes, total in zip(DIVERGENCES, counts["kl"][index], counts["kl_sum"][index], strict=True):
                if any(sizes) or Weighting.named(settings.weighting).fuses:
                    divergence.add_metric([preset, direction], _cumulative(KL_BUCKETS, sizes), total)
        yield from (tokens, failures, alpha, divergence)
        if self._config.speculation is not None:
            yield from self._collect_drafts()

    def _broken(self, counts: list[list[int]]) -> Counter[str]:
        """A preset's tokens at which a member was broken, by the members' names."""
        found: Counter[str] = Counter()
        for (name, expert), (itself, against) in zip(self._config.experts.items(), counts, strict=True):
            found[name] += itself
            if expert.against != NONE:
                found[expert.against] += against
        return found

    def _collect_drafts(self) -> Iterator[Metric]:
        drafted = CounterMetricFamily(
            "fusion_drafted_tokens",
            "Tokens that a member drafted and the fused model verified, by how far ahead.",
            labels=["preset", "position"],
        )
        accepted = CounterMetricFamily(
            "fusion_accepted_tokens", "Drafted tokens that were the fused model's own.", labels=["preset", "position"]
        )
        steps = CounterMetricFamily(
            "fusion_speculation_steps",
            "Steps with requests that speculate, by how many tokens they drafted ahead.",
            labels=["tokens"],
        )
        for (preset, settings), places in zip(self._config.presets.items(), self._counts["drafts"], strict=True):
            if is_spare(preset) or settings.arms:
                continue
            for position, numbers in enumerate(places, start=1):
                for family, number in zip((drafted, accepted), numbers, strict=True):
                    family.add_metric([preset, str(position)], number)
        for tokens, number in enumerate(self._counts["ahead"]):
            steps.add_metric([str(tokens)], number)
        yield from (drafted, accepted, steps)

    def _zero(self) -> Counts:
        presets, experts = range(len(self._names.presets)), range(len(self._names.experts))
        draft_tokens = 0 if self._config.speculation is None else self._config.speculation.tokens
        return {
            "tokens": [[0] * len(self._names.weightings) for _ in presets],
            "broken": [[[0, 0] for _ in experts] for _ in presets],
            "alpha": [[[0] * (len(ALPHA_BUCKETS) + 1) for _ in experts] for _ in presets],
            "alpha_sum": [[0.0 for _ in experts] for _ in presets],
            "kl": [[[0] * (len(KL_BUCKETS) + 1) for _ in DIVERGENCES] for _ in presets],
            "kl_sum": [[0.0 for _ in DIVERGENCES] for _ in presets],
            "drafts": [[[0, 0] for _ in range(draft_tokens)] for _ in presets],
            "ahead": [0] * (1 + draft_tokens),
        }


def _cumulative(bounds: tuple[float, ...], sizes: list[int]) -> list[tuple[str, float]]:
    """Sizes of the buckets to what Prometheus wants: how many values each upper bound covers."""
    return list(zip([*map(str, bounds), "+Inf"], accumulate(sizes), strict=True))
