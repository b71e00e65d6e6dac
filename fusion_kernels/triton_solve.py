"""The minimum of the objective along one delta, for one row in Triton: the steps of `solver`, and the paper's grid."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: N803  (Triton writes compile-time arguments in capitals)

import triton
import triton.language as tl

from fusion_kernels import solver, weighting
from fusion_kernels.triton_moments import INF, POINTS, at, highest, moments, points

GRID_POINTS = tl.constexpr(weighting.GRID_POINTS)
GRID_STEP = tl.constexpr(1.0 / weighting.GRID_STEPS_PER_UNIT)
CELLS = tl.constexpr(solver.CELLS)
MESH = tl.constexpr(solver.MESH)
LEVELS = tl.constexpr(solver.LEVELS)
NEWTON_STEPS = tl.constexpr(solver.NEWTON_STEPS)
ROUGH = tl.constexpr(solver.ROUGH)
RELATIVE = tl.constexpr(solver.RELATIVE)
ABSOLUTE = tl.constexpr(solver.ABSOLUTE)
MARGIN = tl.constexpr(solver.MARGIN)
FLOOR = tl.constexpr(solver.FLOOR)
# A row is swept by powers while its largest tilted weight is below exp(TAME) of the top one.
TAME = tl.constexpr(60.0)


@triton.jit
def _divergences(x, value, mean, start_mean):
    """f and g at x from A and A'."""
    return tl.maximum(x * mean - value, 0.0), tl.maximum(value - x * start_mean, 0.0)


@triton.jit
def _loss(f, g, a, b):
    return (f - a) * (f - a) + (g - b) * (g - b)


@triton.jit
def _better(best, x, loss, f, g):
    """`best` (x, L, f, g), or the first smallest of the candidate vectors where that is lower."""
    k = tl.argmin(loss, 0)
    lower = at(loss, k) < best[1]
    return (
        tl.where(lower, at(x, k), best[0]),
        tl.where(lower, at(loss, k), best[1]),
        tl.where(lower, at(f, k), best[2]),
        tl.where(lower, at(g, k), best[3]),
    )


@triton.jit
def _keep(best, x, loss, f, g):
    """`_better` for one candidate."""
    lower = loss < best[1]
    return (
        tl.where(lower, x, best[0]),
        tl.where(lower, loss, best[1]),
        tl.where(lower, f, best[2]),
        tl.where(lower, g, best[3]),
    )


@triton.jit
def on_grid(problem, reach, a, b, limit, BLOCK: tl.constexpr):
    """(x, L, f, g) of the first smallest L on the grid of Algorithm 1."""
    zero = tl.full((), 0.0, tl.float32)
    best = (zero, a * a + b * b, zero, zero)
    index = tl.arange(0, 16)
    tame = 3 * POINTS * GRID_STEP * reach <= TAME
    origin, start_mean = zero, zero
    group = 0
    while (group * POINTS < GRID_POINTS) & (group * POINTS * GRID_STEP <= limit):
        first = zero + group * POINTS * GRID_STEP
        value, mean, _ = points(problem, first, zero + GRID_STEP, tame, BLOCK)
        origin = tl.where(group == 0, at(value, 0), origin)
        start_mean = tl.where(group == 0, at(mean, 0), start_mean)
        k = group * POINTS + index
        # The same float32 as k / 10 rounded once.
        x = k.to(tl.float32) / (1 / GRID_STEP)
        f, g = _divergences(x, value - origin, mean, start_mean)
        counts = (index < POINTS) & (k > 0) & (k < GRID_POINTS) & (x <= limit)
        best = _better(best, x, tl.where(counts, _loss(f, g, a, b), INF), f, g)
        group += 1
    return best


@triton.jit
def search(problem, reach, a, b, limit, BLOCK: tl.constexpr):
    """(x, L, f, g) of the smallest L on [0, limit], see `solver`."""
    zero = tl.full((), 0.0, tl.float32)
    best = (zero, (a * a + b * b) * (1 - MARGIN), zero, zero)
    tame = limit * reach <= TAME
    index = tl.arange(0, 16)
    cells = index < CELLS
    low, high, origin, start_mean = zero, limit, zero, zero
    guess, left_end, right_end = zero, zero, zero
    level, polish = 0, tl.full((), 0, tl.int32)
    going = ((limit > 0) & (best[1] >= ABSOLUTE)).to(tl.int32)
    # Quintic Hermite basis on [0, 1] and its slopes, [1, 16] with MESH + 1 points in use.
    mesh_index = tl.arange(0, 16)
    s = (mesh_index.to(tl.float32) / MESH)[None, :]
    while going:
        step = (high - low) / CELLS
        value, mean, spread = points(problem, low, step, tame, BLOCK)
        origin = tl.where(level == 0, at(value, 0), origin)
        start_mean = tl.where(level == 0, at(mean, 0), start_mean)
        x = low + step * index.to(tl.float32)
        value -= origin
        f, g = _divergences(x, value, mean, start_mean)
        best = _better(best, x, tl.where(index < POINTS, _loss(f, g, a, b), INF), f, g)
        following = tl.minimum(index + 1, 15)
        f1, g1, value1 = tl.gather(f, following, 0), tl.gather(g, following, 0), tl.gather(value, following, 0)
        mean1, spread1 = tl.gather(mean, following, 0), tl.gather(spread, following, 0)
        # (f, g) rises from end to end of a cell: the distance of that box from (a, b) bounds L from below.
        miss_f = tl.maximum(f - a, 0.0) + tl.maximum(a - f1, 0.0)
        miss_g = tl.maximum(g - b, 0.0) + tl.maximum(b - g1, 0.0)
        alive = cells & (miss_f * miss_f + miss_g * miss_g < best[1] * (1 - RELATIVE) - ABSOLUTE)
        rise = mean1 - mean
        bend = 6 * ((value1 - value) / step - (mean + mean1) / 2)
        surprise = tl.abs(spread * step - rise - bend) + tl.abs(spread1 * step - rise + bend)
        rough = surprise * (x + step) / (f1 - f + 1e-4 * (a + b) + FLOOR)
        worst = tl.max(tl.where(alive, rough, 0.0), 0)

        l0, l1, l2 = value[:, None], (mean * step)[:, None], (spread * step * step)[:, None]
        r0, r1, r2 = value1[:, None], (mean1 * step)[:, None], (spread1 * step * step)[:, None]
        s2, s3 = s * s, s * s * s
        s4, s5 = s2 * s2, s2 * s3
        up, up_slope = 10 * s3 - 15 * s4 + 6 * s5, 30 * s2 - 60 * s3 + 30 * s4
        inner = l0 + (r0 - l0) * up + l1 * (s - 6 * s3 + 8 * s4 - 3 * s5) + r1 * (-4 * s3 + 7 * s4 - 3 * s5)
        inner += l2 * (0.5 * s2 - 1.5 * s3 + 1.5 * s4 - 0.5 * s5) + r2 * (0.5 * s3 - s4 + 0.5 * s5)
        slope = (r0 - l0) * up_slope + l1 * (1 - 18 * s2 + 32 * s3 - 15 * s4) + r1 * (-12 * s2 + 28 * s3 - 15 * s4)
        slope += l2 * (s - 4.5 * s2 + 6 * s3 - 2.5 * s4) + r2 * (1.5 * s2 - 4 * s3 + 2.5 * s4)
        spot = x[:, None] + step * s
        mesh = _loss(spot * slope / step - inner, inner - spot * start_mean, a, b)
        mesh = tl.where(alive[:, None] & (mesh_index <= MESH)[None, :] & (mesh == mesh), mesh, INF)
        where = tl.argmin(tl.reshape(mesh, [256]), 0)
        cell, place = where // 16, where % 16
        flat = tl.reshape(mesh, [256])
        before, here, after = at(flat, where - 1), at(flat, where), at(flat, where + 1)
        bent = 0.5 * (before - after) / tl.maximum(before - 2 * here + after, 1e-30)
        bent = tl.where((place > 0) & (place < MESH), bent, 0.0)

        some = tl.max(alive.to(tl.int32), 0)
        polish = some & ((worst <= ROUGH) | (level == LEVELS - 1)).to(tl.int32)
        guess = low + step * (cell + (place + bent) / MESH)
        left_end = low + step * tl.maximum(cell - 1, 0)
        right_end = low + step * tl.minimum(cell + 2, CELLS)
        going = some & (1 - polish)
        first = tl.min(tl.where(alive, index, CELLS), 0)
        last = tl.max(tl.where(alive, index, 0), 0)
        wide = last + 1 - first > CELLS // 2
        first = tl.where(wide, tl.maximum(cell - 1, 0), first)
        last = tl.where(wide, tl.minimum(cell + 1, CELLS - 1), last)
        low, high = low + step * first, low + step * (last + 1)
        level += 1

    x, low, high = guess, left_end, right_end
    turns = 0
    while polish & (turns < NEWTON_STEPS):
        shift = zero
        if not tame:
            shift = highest(problem, x, BLOCK)
        m0, m1, m2, m3 = moments(problem, x, shift, BLOCK)
        here_mean, square, cube = m1 / m0, m2 / m0, m3 / m0
        gain = tl.log(m0) + shift - origin
        here_spread = tl.maximum(square - here_mean * here_mean, 0.0)
        skew = cube - 3 * here_mean * square + 2 * here_mean * here_mean * here_mean
        here_f, here_g = _divergences(x, gain, here_mean, start_mean)
        loss = _loss(here_f, here_g, a, b)
        best = _keep(best, x, loss, here_f, here_g)
        slope_f, slope_g = x * here_spread, here_mean - start_mean
        down = (here_f - a) * slope_f + (here_g - b) * slope_g
        steady = slope_f * slope_f + slope_g * slope_g
        curve = steady + (here_f - a) * (here_spread + x * skew) + (here_g - b) * here_spread
        curve = tl.where(curve < 0.1 * steady, steady, curve)
        high, low = tl.where(down > 0, x, high), tl.where(down > 0, low, x)
        wanted = x - down / tl.where(curve > 0, curve, 1.0)
        inside = (wanted >= low) & (wanted <= high) & (curve > 0)
        at_end = (wanted > high) & (high - x < 1e-9 + 1e-7 * x)
        then = tl.where(inside, wanted, tl.where(at_end, high, 0.5 * (low + high)))
        move = then - x
        error = move * move * tl.maximum(tl.sqrt(here_spread), tl.abs(skew) / (here_spread + 1e-30))
        # Without a curve nothing is known of the error: at 0, where L is always level, or where f and g are saturated.
        settled = (curve > 0) & (curve * error * error <= RELATIVE * loss + 1e-9)
        # The last step needs no evaluation: A is known there by its Taylor series.
        gain += move * (here_mean + move * (here_spread / 2 + move * skew / 6))
        here_f, here_g = _divergences(then, gain, here_mean + move * (here_spread + move * skew / 2), start_mean)
        best = _keep(best, then, tl.where(settled, _loss(here_f, here_g, a, b), INF), here_f, here_g)
        polish = polish & (settled == 0).to(tl.int32)
        x = then
        turns += 1
    return best
