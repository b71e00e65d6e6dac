"""Puts what a router chose into an answer, as a field `fusion_route` beside each choice's text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from server.config.schema import ExpertConfig
from server.engine.routing.choosing import Choice
from server.engine.routing.routed import Routed
from server.engine.routing.router import NONE

DECIMALS = 4


class RouteCounts(Collector):
    """How often which expert was chosen."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        registry.register(self)

    def count(self, preset: str, experts: Sequence[str]) -> None:
        """A prompt was routed to `experts`."""
        self._counts.update((preset, expert) for expert in experts or (NONE,))

    def collect(self) -> Iterator[Metric]:
        """Yield the family."""
        family = CounterMetricFamily(
            "fusion_routed", "Prompts for which a router chose an expert, or none.", labels=["preset", "expert"]
        )
        for labels, number in self._counts.items():
            family.add_metric(labels, number)
        yield family


class RouteField:
    """Adds `fusion_route` to an answer, or to the first event of a stream of each choice."""

    def __init__(self, routed: Routed, experts: Mapping[str, ExpertConfig], *, in_choices: bool) -> None:
        self._routed, self._experts, self._in_choices = routed, experts, in_choices
        self._done: set[int] = set()

    @property
    def complete(self) -> bool:
        """Whether every choice of the answer has it."""
        return 0 < self._routed.expected <= len(self._done)

    def attach(self, answer: dict[str, Any]) -> None:
        """Add the field where it is known and has not been added yet."""
        places = [(each["index"], each) for each in answer.get("choices", ())] if self._in_choices else [(0, answer)]
        for index, place in places:
            chosen = self._routed.chosen.get(index)
            if chosen is None or index in self._done:
                continue
            self._done.add(index)
            place["fusion_route"] = route_field(chosen, self._routed.classes, self._experts)


def route_field(chosen: Choice, classes: Sequence[str], experts: Mapping[str, ExpertConfig]) -> dict[str, Any]:
    """The `fusion_route` object: `experts` that steer, the likeliest first, and the `probabilities` of all classes.

    Of experts that are mixtures also the `parts`, with the share of each.
    """
    names = list(experts)
    found: dict[str, Any] = {
        "experts": [names[expert] for expert in chosen.experts],
        "probabilities": {
            name: round(value, DECIMALS) if math.isfinite(value) else None
            for name, value in zip(classes, chosen.probabilities, strict=True)
        },
    }
    for expert, shares in chosen.shares.items():
        parts = experts[names[expert]].parts
        # As they are: a request can ask for the same mixture again.
        said = {part: share for part, share in zip(parts, shares, strict=True) if share}
        found.setdefault("parts", {})[names[expert]] = said
    return found
