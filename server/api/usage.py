"""What each client has used since the server started: requests, tokens, and experts, for bills and for quotas.

Clients go by the names of their keys, so that the series are as many as the operator has named. Tokens are those of the
API's `usage`: a prompt counts once however many choices it has, and what members read of their own does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from server.engine.place import Seat

KINDS = ("prompt", "generated")

Meter = Callable[[Seat], None]
"""Takes the seat of one sequence that is over."""


class Usage(Collector):
    """The counts of one server."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._requests: Counter[tuple[str, str]] = Counter()
        self._tokens: Counter[tuple[str, str, str]] = Counter()
        self._experts: Counter[tuple[str, str]] = Counter()
        registry.register(self)

    def meter(self, client: str, preset: str, experts: Sequence[str]) -> Meter:
        """Count a request, and return what counts its tokens."""
        self._requests[client, preset] += 1

        def count(seat: Seat) -> None:
            generated = seat.generated or 0
            for kind, number in zip(KINDS, (seat.prompt, generated), strict=True):
                self._tokens[client, preset, kind] += number
            for expert in experts:
                self._experts[client, expert] += generated

        return count

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        requests = CounterMetricFamily(
            "fusion_client_requests", "Requests that asked for tokens, by whose they are.", labels=["client", "preset"]
        )
        tokens = CounterMetricFamily(
            "fusion_client_tokens", "Tokens read and generated, by whose they are.", labels=["client", "preset", "kind"]
        )
        experts = CounterMetricFamily(
            "fusion_client_expert_tokens", "Tokens that an expert steered, by whose.", labels=["client", "expert"]
        )
        for family, counts in ((requests, self._requests), (tokens, self._tokens), (experts, self._experts)):
            for labels, number in counts.items():
                family.add_metric(labels, number)
            yield family

    def as_dict(self) -> dict[str, Any]:
        """By client: all it used, by preset, and the tokens that each expert steered."""
        found: dict[str, Any] = {}
        for (client, preset), number in sorted(self._requests.items()):
            used = found.setdefault(client, _nothing() | {"presets": {}, "experts": {}})
            of_preset = used["presets"][preset] = _nothing()
            for kept in (used, of_preset):
                kept["requests"] += number
                kept["prompt_tokens"] += self._tokens[client, preset, "prompt"]
                kept["generated_tokens"] += self._tokens[client, preset, "generated"]
        for (client, expert), number in sorted(self._experts.items()):
            found[client]["experts"][expert] = number
        return found


def _nothing() -> dict[str, Any]:
    return {"requests": 0, "prompt_tokens": 0, "generated_tokens": 0}
