"""Presets that split: which of its presets ("arms") answers a request, said in the answer and counted."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from server.api.masks import field_of
from server.api.requests import FusionMessagesRequest
from server.auth import ANYBODY, Client
from server.config import Config
from server.config.rollout import Sticky
from server.engine.place import Seat

SECONDS_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
NAMING = ("safety_identifier", "user", "prompt_cache_key")
"""The fields of OpenAI's reference that say whom a request is for, the most exact first."""


def arm_of(preset: str, config: Config, client: Client, request: Any) -> str:
    """The preset that answers a request for `preset`: itself, the one that has a shadow, or one of a split."""
    split = config.presets[preset].split
    if split is None:
        return config.arms(preset)[0]
    return draw(preset, split, _sticks_to(config.presets[preset].sticky, client, request))


def draw(preset: str, shares: Mapping[str, float], whose: str | None) -> str:
    """One of the names in `shares`, each with its share of the probability; the same one for the same `whose`.

    Each arm has a clock that rings after a time from the exponential distribution, with its share as the rate, and the
    first to ring is taken (weighted rendezvous hashing): argmin of -log(u(preset, whose, arm)) / share, with u uniform
    in (0, 1) by SHA-256. So the order of the arms says nothing, no other process or preset need be asked, and where
    shares change, whoever moves leaves an arm that lost for one that gained: between two arms only the difference.

    Args:
        preset: what is split; the same `whose` falls independently in another.
        shares: by arm, its share.
        whose: whom to remember; `None` draws at random.
    """
    if whose is None:
        (arm,) = random.choices(list(shares), list(shares.values()))
        return arm
    return min(shares, key=lambda arm: (-math.log(_uniform(preset, whose, arm)) / shares[arm], arm))


def _uniform(*parts: str) -> float:
    """A number in (0, 1) that is a function of `parts`: 53 bits of their hash, in the middle of their interval."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return ((int.from_bytes(digest.digest()[:8], "big") >> 11) + 0.5) / 2**53


def _sticks_to(sticky: Sticky, client: Client, request: Any) -> str | None:
    """Whose requests go the same way as this one; `None`: nobody's."""
    if sticky == "none":
        return None
    named = _named(request)
    by_user = named is not None and (sticky == "user" or client is ANYBODY)
    if not by_user:
        return None if client is ANYBODY else f"key {client.name}"
    # Two clients may call their users alike; the name of a client holds no space.
    return f"user {client.name} {named}"


def _named(request: Any) -> str | None:
    """Whom a request says that it is for."""
    found = [field_of(request, name) for name in NAMING]
    if isinstance(request, FusionMessagesRequest):
        found.append((request.metadata or {}).get("user_id"))
    return next((each for each in found if isinstance(each, str) and each), None)


class ArmField:
    """Adds `fusion_arm` to an answer, or to the first event of a stream."""

    def __init__(self, arm: str) -> None:
        self._arm = arm
        self.complete = False

    def attach(self, answer: dict[str, Any]) -> None:
        """Add the field, once."""
        if not self.complete:
            answer["fusion_arm"] = self._arm
            self.complete = True


class SplitCounts:
    """What the arms of each split had to do, to compare them by."""

    def __init__(self, config: Config, registry: CollectorRegistry = REGISTRY) -> None:
        labels = ["preset", "arm"]
        self._requests = Counter(
            "fusion_split_requests", "Requests for a preset that splits, by who answered.", labels, registry=registry
        )
        self._tokens = Counter(
            "fusion_split_tokens", "Tokens generated for a preset that splits.", labels, registry=registry
        )
        self._seconds = Histogram(
            "fusion_split_request_seconds",
            "Time from a request's arrival to its end, of those for which tokens were generated.",
            labels,
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        for preset, settings in config.presets.items():
            for arm in settings.split or ():
                for family in (self._requests, self._tokens, self._seconds):
                    family.labels(preset, arm)

    def count(self, preset: str, arm: str) -> tuple[Callable[[Seat], None], Callable[[], None]]:
        """Count a request; return what counts each of its sequences that is over, and what is called at its end."""
        began, generated = time.monotonic(), 0
        self._requests.labels(preset, arm).inc()

        def count(seat: Seat) -> None:
            nonlocal generated
            generated += seat.generated or 0
            self._tokens.labels(preset, arm).inc(seat.generated or 0)

        def end() -> None:
            if generated:
                self._seconds.labels(preset, arm).observe(time.monotonic() - began)

        return count, end
