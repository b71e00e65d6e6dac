"""How many tokens are drafted ahead: against every fixed number, on machines and prompts of all kinds."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from server.engine.speculation.pace import Pace

MOST = 4


def cheap(requests: int, drafts: int) -> float:
    """A step that reads weights, whatever the number of tokens."""
    return 1.0 + 0.06 * drafts + 0.002 * requests * (1 + drafts)


def dear(requests: int, drafts: int) -> float:
    """A step whose time is arithmetic, and which takes each token by itself."""
    return 0.1 + 0.3 * requests * (1 + drafts)


def mixed(requests: int, drafts: int) -> float:
    """Reads weights while requests are few, and computes when they are many."""
    return max(1.0, 0.05 * requests * (1 + drafts)) + 0.1 * drafts


class Machine:
    """Serves requests one step after another, drafts being right with a chance of their own."""

    def __init__(self, seconds: Callable[[int, int], float], seed: int, noise: float = 0.1) -> None:
        self.seconds, self.noise, self.random = seconds, noise, random.Random(seed)
        self.pace = Pace(MOST)
        self.last = 0

    def run(self, steps: int, requests: int, right: float, fixed: int | None = None) -> float:
        """Tokens per second of so many steps."""
        tokens = seconds = 0.0
        for _ in range(steps):
            verified = self.last
            drafts = self.last = self.pace.choose(requests) if fixed is None else fixed
            took = self.seconds(requests, drafts) * self.random.uniform(1, 1 + self.noise)
            if self.random.random() < 0.01:
                took *= 5  # somebody else had the machine
            accepted = [self._accepted(verified, right) for _ in range(requests)]
            self.pace.gave(verified, accepted)
            if verified == drafts:
                self.pace.took(requests, drafts, took)
            tokens, seconds = tokens + requests + sum(accepted), seconds + took
        return tokens / seconds

    def _accepted(self, drafts: int, right: float) -> int:
        number = 0
        while number < drafts and self.random.random() < right:
            number += 1
        return number


@pytest.mark.parametrize("right", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("requests", [1, 4, 32])
@pytest.mark.parametrize("seconds", [cheap, dear, mixed])
def test_it_is_close_to_the_best_number(seconds: Callable[[int, int], float], requests: int, right: float) -> None:
    rates = [Machine(seconds, 1).run(1000, requests, right, fixed) for fixed in range(MOST + 1)]
    ours = [Machine(seconds, seed).run(1000, requests, right) for seed in (2, 3, 4)]
    mean = sum(ours) / len(ours)
    assert mean > 0.91 * max(rates), "a gain of a tenth may be left alone"
    assert mean > 0.96 * rates[0], "drafting none is never much faster"


def test_it_follows_prompts_that_change() -> None:
    machine = Machine(mixed, 3)
    machine.run(1000, 4, 0.9)
    for right in (0.0, 0.9, 0.0, 0.9):
        best = max(Machine(mixed, 4).run(1000, 4, right, fixed) for fixed in range(MOST + 1))
        machine.run(600, 4, right)
        assert machine.run(1000, 4, right) > 0.93 * best


def test_it_follows_the_load() -> None:
    machine = Machine(mixed, 5)
    for requests in (1, 64, 1, 64):
        machine.run(500, requests, 0.6)
    few = [machine.pace.choose(1) for _ in range(50)]
    many = [machine.pace.choose(64) for _ in range(50)]
    assert sorted(few)[25] >= 2
    assert sorted(many)[25] == 0


def test_more_requests_begin_without_drafts_where_fewer_end_without() -> None:
    machine = Machine(dear, 7)
    machine.run(200, 8, 0.3)
    drafted = 0
    for _ in range(60):
        machine.run(1, 32, 0.3)
        drafted += machine.last
    assert drafted == 0


def test_it_drafts_little_where_no_step_tells_what_it_costs() -> None:
    """Prompts are read in every step: no step's time is one of decoding alone."""
    pace = Pace(MOST)
    chosen = []
    for _ in range(1000):
        chosen.append(pace.choose(32))
        pace.gave(chosen[-1], [0] * 32)
    assert chosen.count(0) > 600


def test_loads_that_take_turns_are_all_learned() -> None:
    machine = Machine(mixed, 6)
    for step in range(3000):
        machine.run(1, 1 if step % 2 else 40, 0.5)
    assert {len(load.times[0]) for load in machine.pace._loads.values()} == {15}
