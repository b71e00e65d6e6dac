"""A search of one row and expert between two passes over the vocabulary, as it lies in memory."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from typing import Any, NamedTuple

import triton
import triton.language as tl

# What a search wants next: nothing, a sweep of its bracket, the paper's next points, or the moments at a weight.
DONE = tl.constexpr(0)
SWEEP = tl.constexpr(1)
GRID = tl.constexpr(2)
NEWTON = tl.constexpr(3)


class Goal(NamedTuple):
    """What a search aims at, and where A starts."""

    a: Any
    b: Any
    limit: Any  # the largest weight
    start: Any  # A(0) as computed, which every A is relative to
    mean: Any  # A'(0)


class Best(NamedTuple):
    """The best weight so far."""

    x: Any
    loss: Any
    f: Any
    g: Any


class Next(NamedTuple):
    """What comes next, and where."""

    phase: Any
    turn: Any  # how many passes of this phase there were
    at: Any  # the first point of the next sweep, or the weight that Newton has come to
    low: Any  # the bracket that Newton stays in
    high: Any
    step: Any  # between the points of the next sweep


class State(NamedTuple):
    """A search between two passes; all float32."""

    top: Any  # as in `Line`, and so is the centre
    centre: Any
    tame: Any  # 1 where a sweep needs no shifts
    trust: Any  # what the weight that is found is multiplied by
    goal: Any
    best: Any
    next: Any


STATE = tl.constexpr(4 + 5 + 4 + 6)


@triton.jit
def store_state(place, state):
    """Write a `State` to `STATE` float32."""
    for i in tl.static_range(4):
        tl.store(place + i, state[i])
    for i in tl.static_range(5):
        tl.store(place + 4 + i, state.goal[i])
    for i in tl.static_range(4):
        tl.store(place + 9 + i, state.best[i])
    for i in tl.static_range(6):
        tl.store(place + 13 + i, state.next[i])


@triton.jit
def load_state(place):
    """Read what `store_state` wrote."""
    return State(
        tl.load(place),
        tl.load(place + 1),
        tl.load(place + 2),
        load_trust(place),
        Goal(tl.load(place + 4), tl.load(place + 5), tl.load(place + 6), tl.load(place + 7), tl.load(place + 8)),
        load_best(place),
        Next(
            tl.load(place + 13),
            tl.load(place + 14),
            tl.load(place + 15),
            tl.load(place + 16),
            tl.load(place + 17),
            tl.load(place + 18),
        ),
    )


@triton.jit
def load_trust(place):
    """Read the `trust` of what `store_state` wrote."""
    return tl.load(place + 3)


@triton.jit
def load_best(place):
    """Read the `Best` of what `store_state` wrote."""
    return Best(tl.load(place + 9), tl.load(place + 10), tl.load(place + 11), tl.load(place + 12))
