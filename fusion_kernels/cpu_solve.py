"""The minimum of the objective along one delta, for one row on the CPU: the steps of `solver` in numba."""

# mypy: disable-error-code="assignment, no-any-return"
from typing import Any

import numpy as np
import torch

from fusion_kernels import cpu_moments
from fusion_kernels.solver import ABSOLUTE, CELLS, FLOOR, LEVELS, MARGIN, MESH, NEWTON_STEPS, RELATIVE, ROUGH, hermite
from fusion_kernels.vector import jit

# A row is swept by powers while its largest tilted weight is below exp(TAME) of the top one.
TAME = 60.0

BASIS, SLOPES = (part.numpy() for part in hermite(torch.device("cpu")))


@jit
def points(row: Any, first: float, step: float, tame: bool, table: Any, scratch: Any) -> None:
    """table[k] = A (with an offset common to all), A', A'' at first + k step."""
    large, weights, delta, top, centre = row
    if tame:
        cpu_moments.sweep(weights, delta, centre, first, step, table, scratch[0], scratch[1])
    for k in range(table.shape[0]):
        shift = 0.0
        if not tame:
            x = first + k * step
            shift = float(cpu_moments.highest(large, top, delta, centre, x))
            cpu_moments.moments(large, top, delta, centre, x, shift, table[k])
        mean = table[k, 1] / table[k, 0]
        spread = max(table[k, 2] / table[k, 0] - mean * mean, 0.0)
        table[k, 0] = np.log(table[k, 0]) + shift
        table[k, 1] = mean
        table[k, 2] = spread


@jit
def at_one(row: Any, sums: Any) -> tuple[float, float]:
    """f and g at weight 1 along the delta, of any size; `sums` is a table of at least two rows."""
    large, _, delta, top, centre = row
    for x in range(2):
        shift = float(cpu_moments.highest(large, top, delta, centre, float(x)))
        cpu_moments.moments(large, top, delta, centre, float(x), shift, sums[x])
        sums[x, 1] /= sums[x, 0]
        sums[x, 0] = np.log(sums[x, 0]) + shift
    gain = sums[1, 0] - sums[0, 0]
    return max(sums[1, 1] - gain, 0.0), max(gain - sums[0, 1], 0.0)


@jit
def interpolated(left: Any, right: Any, x: float, h: float, i: int, mu: float, a: float, b: float) -> float:
    """L at the i-th of MESH steps through the cell from x to x + h, whose ends have the table rows left and right."""
    value = left[0] * BASIS[0, i] + right[0] * BASIS[3, i]
    value += h * (left[1] * BASIS[1, i] + right[1] * BASIS[4, i] + h * (left[2] * BASIS[2, i] + right[2] * BASIS[5, i]))
    slope = (left[0] * SLOPES[0, i] + right[0] * SLOPES[3, i]) / h
    slope += left[1] * SLOPES[1, i] + right[1] * SLOPES[4, i] + h * (left[2] * SLOPES[2, i] + right[2] * SLOPES[5, i])
    at = x + h * i / MESH
    return (at * slope - value - a) ** 2 + (value - at * mu - b) ** 2


@jit
def roughness(left: Any, right: Any, x: float, h: float, a: float, b: float) -> float:
    """How far A'' at a cell's ends is from the cubic that A and A' imply, as a share of what f gains in the cell."""
    rise = right[1] - left[1]
    bend = 6 * ((right[0] - left[0]) / h - (left[1] + right[1]) / 2)
    surprise = abs(left[2] * h - rise - bend) + abs(right[2] * h - rise + bend)
    return surprise * (x + h) / (right[3] - left[3] + 1e-4 * (a + b) + FLOOR)


@jit
def on_grid(row: Any, reach: float, a: float, b: float, count: int, step: float, table: Any, scratch: Any) -> Any:
    """(x, L, f, g) of the first smallest L among 0, step .. (count - 1) step; `reach` is the largest delta - centre."""
    padded = (count + 2) // 3 * 3
    points(row, 0.0, step, padded * step * reach <= TAME, table[:padded], scratch)
    best = (0.0, a * a + b * b, 0.0, 0.0)
    for k in range(1, count):
        x, gain = k * step, table[k, 0] - table[0, 0]
        f, g = max(x * table[k, 1] - gain, 0.0), max(gain - x * table[0, 1], 0.0)
        loss = (f - a) ** 2 + (g - b) ** 2
        if loss < best[1]:
            best = (x, loss, f, g)
    return best


@jit
def search(row: Any, reach: float, a: float, b: float, limit: float, table: Any, scratch: Any) -> Any:
    """(x, L, f, g) of the smallest L on [0, limit]; 0 unless another weight is better by more than a millionth."""
    best = (0.0, (a * a + b * b) * (1 - MARGIN), 0.0, 0.0)
    if limit <= 0.0 or best[1] < ABSOLUTE:
        return best
    tame, low, high, origin, mu = limit * reach <= TAME, 0.0, limit, 0.0, 0.0
    h, cell, guess = 0.0, 0, 0.0
    for level in range(LEVELS):
        h = (high - low) / CELLS
        points(row, low, h, tame, table[: CELLS + 1], scratch)
        if level == 0:
            origin, mu = table[0, 0], table[0, 1]
        for k in range(CELLS + 1):
            x = low + k * h
            table[k, 0] -= origin
            f, g = max(x * table[k, 1] - table[k, 0], 0.0), max(table[k, 0] - x * mu, 0.0)
            table[k, 3], table[k, 4] = f, g
            loss = (f - a) ** 2 + (g - b) ** 2
            if loss < best[1]:
                best = (x, loss, f, g)
        first, last, worst, least, step = -1, -1, 0.0, np.inf, 0
        for k in range(CELLS):
            left, right = table[k], table[k + 1]
            miss_f = max(left[3] - a, 0.0) + max(a - right[3], 0.0)
            miss_g = max(left[4] - b, 0.0) + max(b - right[4], 0.0)
            if miss_f * miss_f + miss_g * miss_g >= best[1] * (1 - RELATIVE) - ABSOLUTE:
                continue
            first = k if first < 0 else first
            last = k
            worst = max(worst, roughness(left, right, low + k * h, h, a, b))
            for i in range(MESH + 1):
                loss = interpolated(left, right, low + k * h, h, i, mu, a, b)
                if loss < least:
                    least, cell, step = loss, k, i
        if first < 0:
            return best
        guess = low + (cell + step / MESH) * h
        if 0 < step < MESH:
            x = low + cell * h
            before = interpolated(table[cell], table[cell + 1], x, h, step - 1, mu, a, b)
            after = interpolated(table[cell], table[cell + 1], x, h, step + 1, mu, a, b)
            guess += 0.5 * h / MESH * (before - after) / max(before - 2 * least + after, 1e-30)
        if worst <= ROUGH or level == LEVELS - 1:
            break
        if last + 1 - first > CELLS // 2:
            first, last = max(cell - 1, 0), min(cell + 1, CELLS - 1)
        low, high = low + first * h, low + (last + 1) * h
    left_end, right_end = low + max(cell - 1, 0) * h, low + min(cell + 2, CELLS) * h
    return newton(row, tame, a, b, origin, mu, guess, left_end, right_end, best, table[0])


@jit
def newton(
    row: Any,
    tame: bool,
    a: float,
    b: float,
    origin: float,
    mu: float,
    x: float,
    low: float,
    high: float,
    best: Any,
    sums: Any,
) -> Any:
    """(x, L, f, g) of the minimum of L in [low, high], from the guess x; never worse than `best`."""
    large, _, delta, top, centre = row
    for _ in range(NEWTON_STEPS):
        shift = 0.0 if tame else float(cpu_moments.highest(large, top, delta, centre, x))
        cpu_moments.moments(large, top, delta, centre, x, shift, sums)
        mean, square, cube = sums[1] / sums[0], sums[2] / sums[0], sums[3] / sums[0]
        gain = np.log(sums[0]) + shift - origin
        spread, skew = max(square - mean * mean, 0.0), cube - 3 * mean * square + 2 * mean**3
        f, g = max(x * mean - gain, 0.0), max(gain - x * mu, 0.0)
        loss = (f - a) ** 2 + (g - b) ** 2
        if loss < best[1]:
            best = (x, loss, f, g)
        slope_f, slope_g = x * spread, mean - mu
        slope = (f - a) * slope_f + (g - b) * slope_g
        steady = slope_f * slope_f + slope_g * slope_g
        bend = steady + (f - a) * (spread + x * skew) + (g - b) * spread
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
            gain += step * (mean + step * (spread / 2 + step * skew / 6))
            mean += step * (spread + step * skew / 2)
            f, g = max(target * mean - gain, 0.0), max(gain - target * mu, 0.0)
            loss = (f - a) ** 2 + (g - b) ** 2
            if loss < best[1]:
                best = (target, loss, f, g)
            break
        x = target
    return best
