"""The search of `fusion_kernels.search` for one row on the CPU, in numba."""

# mypy: disable-error-code="assignment, no-any-return"
from typing import Any, NamedTuple

import numpy as np
import torch

from fusion_kernels.cpu import moments
from fusion_kernels.cpu.vector import jit
from fusion_kernels.search import (
    ABSOLUTE,
    CELLS,
    FLOOR,
    GRID_POINTS,
    GRID_STEPS_PER_UNIT,
    LEVELS,
    MARGIN,
    MESH,
    NEWTON_STEPS,
    RELATIVE,
    ROUGH,
    TAME,
    hermite,
)

BASIS, SLOPES = (part.numpy() for part in hermite(torch.device("cpu")))
# The columns of a table of points: A (with an offset common to all), A', A'', f and g.
VALUE, MEAN, SPREAD, F, G = range(5)
COLUMNS = 5


class Line(NamedTuple):
    """One row along one delta; V_c numbers each, float32."""

    large: Any
    """[V_c] logits."""
    weights: Any
    """[V_c]: exp(large - top)."""
    delta: Any
    """[V_c]."""
    top: float
    """The largest of `large`."""
    centre: float
    """Delta at large's top token."""
    reach: float
    """The largest delta - centre."""
    blocks: Any
    """[2, BLOCK] scratch."""


class Goal(NamedTuple):
    """What a row aims at, and where A starts."""

    a: float
    b: float
    start: float
    """A(0) as computed, which every A is relative to."""
    mean: float
    """A'(0)."""


class Best(NamedTuple):
    """The best weight so far."""

    x: float
    loss: float
    f: float
    g: float


class Bracket(NamedTuple):
    """Where the minimum is: a guess, and the ends of the interval that Newton stays in."""

    guess: float
    low: float
    high: float


@jit
def points(line: Any, first: float, step: float, tame: bool, table: Any) -> None:
    """Fill the first three columns of the table's rows at first + k step."""
    if tame:
        moments.sweep(line, first, step, table)
    for k in range(table.shape[0]):
        shift = 0.0
        if not tame:
            x = first + k * step
            shift = float(moments.highest(line, x))
            moments.moments(line, x, shift, table[k])
        total, mean, square = table[k, 0], table[k, 1] / table[k, 0], table[k, 2] / table[k, 0]
        table[k, VALUE] = np.log(total) + shift
        table[k, MEAN] = mean
        table[k, SPREAD] = max(square - mean * mean, 0.0)


@jit
def at_one(line: Any, table: Any) -> tuple[float, float]:
    """f and g at weight 1 along the delta, of any size; the table has at least two rows."""
    points(line, 0.0, 1.0, False, table[:2])
    gain = table[1, VALUE] - table[0, VALUE]
    return max(table[1, MEAN] - gain, 0.0), max(gain - table[0, MEAN], 0.0)


@jit
def divergences(x: float, value: float, mean: float, goal: Any) -> tuple[float, float]:
    """f and g at x, from A - A(0) and A' there."""
    return max(x * mean - value, 0.0), max(value - x * goal.mean, 0.0)


@jit
def better(best: Any, x: float, f: float, g: float, goal: Any) -> Any:
    """`best`, or the weight x with its f and g where that is lower."""
    loss = (f - goal.a) ** 2 + (g - goal.b) ** 2
    return Best(x, loss, f, g) if loss < best.loss else best


@jit
def interpolated(left: Any, right: Any, x: float, h: float, i: int, goal: Any) -> float:
    """L at the i-th of MESH steps through the cell from x to x + h, whose ends have the table rows left and right."""
    value = left[VALUE] * BASIS[0, i] + right[VALUE] * BASIS[3, i]
    value += h * (left[MEAN] * BASIS[1, i] + right[MEAN] * BASIS[4, i])
    value += h * h * (left[SPREAD] * BASIS[2, i] + right[SPREAD] * BASIS[5, i])
    slope = (left[VALUE] * SLOPES[0, i] + right[VALUE] * SLOPES[3, i]) / h
    slope += left[MEAN] * SLOPES[1, i] + right[MEAN] * SLOPES[4, i]
    slope += h * (left[SPREAD] * SLOPES[2, i] + right[SPREAD] * SLOPES[5, i])
    at = x + h * i / MESH
    return (at * slope - value - goal.a) ** 2 + (value - at * goal.mean - goal.b) ** 2


@jit
def roughness(left: Any, right: Any, x: float, h: float, goal: Any) -> float:
    """How far A'' at a cell's ends is from the cubic that A and A' imply, as a share of what f gains in the cell."""
    rise = right[MEAN] - left[MEAN]
    bend = 6 * ((right[VALUE] - left[VALUE]) / h - (left[MEAN] + right[MEAN]) / 2)
    surprise = abs(left[SPREAD] * h - rise - bend) + abs(right[SPREAD] * h - rise + bend)
    return surprise * (x + h) / (right[F] - left[F] + 1e-4 * (goal.a + goal.b) + FLOOR)


@jit
def may_hold_less(left: Any, right: Any, best: Any, goal: Any) -> bool:
    """Whether L in the cell may be lower than the best: (f, g) stays in the box that its ends span."""
    miss_f = max(left[F] - goal.a, 0.0) + max(goal.a - right[F], 0.0)
    miss_g = max(left[G] - goal.b, 0.0) + max(goal.b - right[G], 0.0)
    return miss_f * miss_f + miss_g * miss_g < best.loss * (1 - RELATIVE) - ABSOLUTE


@jit
def search_on_grid(line: Any, a: float, b: float, limit: float, table: Any) -> Any:
    """The `Best` of the first smallest L on the grid of Algorithm 1, up to the limit."""
    count, step = 0, 1.0 / GRID_STEPS_PER_UNIT
    while count < GRID_POINTS and np.float32(count / GRID_STEPS_PER_UNIT) <= limit:
        count += 1
    padded = (count + 2) // 3 * 3
    points(line, 0.0, step, padded * step * line.reach <= TAME, table[:padded])
    goal = Goal(a, b, table[0, VALUE], table[0, MEAN])
    best = Best(0.0, a * a + b * b, 0.0, 0.0)
    for k in range(1, count):
        f, g = divergences(k * step, table[k, VALUE] - goal.start, table[k, MEAN], goal)
        best = better(best, k * step, f, g, goal)
    return best


@jit
def search(line: Any, a: float, b: float, limit: float, table: Any) -> Any:
    """The `Best` of the smallest L on [0, limit]; 0 unless another weight is better by more than a millionth."""
    best = Best(0.0, (a * a + b * b) * (1 - MARGIN), 0.0, 0.0)
    if limit <= 0.0 or best.loss < ABSOLUTE:
        return best
    tame, low, high, goal = limit * line.reach <= TAME, 0.0, limit, Goal(a, b, 0.0, 0.0)
    h, cell, guess = 0.0, 0, 0.0
    for level in range(LEVELS):
        h = (high - low) / CELLS
        points(line, low, h, tame, table[: CELLS + 1])
        if level == 0:
            goal = Goal(a, b, table[0, VALUE], table[0, MEAN])
        for k in range(CELLS + 1):
            x = low + k * h
            table[k, VALUE] -= goal.start
            table[k, F], table[k, G] = divergences(x, table[k, VALUE], table[k, MEAN], goal)
            best = better(best, x, table[k, F], table[k, G], goal)
        first, last, worst, least, step = -1, -1, 0.0, np.inf, 0
        for k in range(CELLS):
            left, right = table[k], table[k + 1]
            if not may_hold_less(left, right, best, goal):
                continue
            first = k if first < 0 else first
            last = k
            worst = max(worst, roughness(left, right, low + k * h, h, goal))
            for i in range(MESH + 1):
                loss = interpolated(left, right, low + k * h, h, i, goal)
                if loss < least:
                    least, cell, step = loss, k, i
        if first < 0:
            return best
        guess = low + (cell + step / MESH) * h
        if 0 < step < MESH:
            x = low + cell * h
            before = interpolated(table[cell], table[cell + 1], x, h, step - 1, goal)
            after = interpolated(table[cell], table[cell + 1], x, h, step + 1, goal)
            guess += 0.5 * h / MESH * (before - after) / max(before - 2 * least + after, 1e-30)
        if worst <= ROUGH or level == LEVELS - 1:
            break
        if last + 1 - first > CELLS // 2:
            first, last = max(cell - 1, 0), min(cell + 1, CELLS - 1)
        low, high = low + first * h, low + (last + 1) * h
    bracket = Bracket(guess, low + max(cell - 1, 0) * h, low + min(cell + 2, CELLS) * h)
    return newton(line, tame, goal, bracket, best, table[0])


@jit
def newton(line: Any, tame: bool, goal: Any, bracket: Any, best: Any, sums: Any) -> Any:
    """The `Best` of the minimum of L in the bracket; never worse than `best`."""
    x, low, high = bracket.guess, bracket.low, bracket.high
    for _ in range(NEWTON_STEPS):
        shift = 0.0 if tame else float(moments.highest(line, x))
        moments.moments(line, x, shift, sums)
        mean, square, cube = sums[1] / sums[0], sums[2] / sums[0], sums[3] / sums[0]
        gain = np.log(sums[0]) + shift - goal.start
        spread, skew = max(square - mean * mean, 0.0), cube - 3 * mean * square + 2 * mean**3
        f, g = divergences(x, gain, mean, goal)
        best = better(best, x, f, g, goal)
        loss = (f - goal.a) ** 2 + (g - goal.b) ** 2
        slope_f, slope_g = x * spread, mean - goal.mean
        slope = (f - goal.a) * slope_f + (g - goal.b) * slope_g
        steady = slope_f * slope_f + slope_g * slope_g
        bend = steady + (f - goal.a) * (spread + x * skew) + (g - goal.b) * spread
        if bend < 0.1 * steady:
            bend = steady
        if slope > 0.0:
            high = x
        else:
            low = x
        target = x - slope / bend if bend > 0.0 else 0.5 * (low + high)
        if not low <= target <= high:
            target = high if target > high and high - x < 1e-9 + 1e-7 * x else 0.5 * (low + high)
        step = target - x
        error = step * step * max(np.sqrt(spread), abs(skew) / (spread + 1e-30))
        # Without a bend nothing is known of the error: at 0, where L is always level, or where f and g are saturated.
        if bend > 0.0 and bend * error * error <= RELATIVE * loss + 1e-9:
            # The last step needs no evaluation: A is known there by its Taylor series.
            gain += step * (mean + step * (spread / 2 + step * skew / 6))
            f, g = divergences(target, gain, mean + step * (spread + step * skew / 2), goal)
            return better(best, target, f, g, goal)
        x = target
    return best
