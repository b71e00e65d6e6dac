"""The search of `fusion_kernels.search` for one row and expert in Triton, and the paper's grid, step by step.

Between two passes over the vocabulary a search is a `State`: it says which sums it wants next, and `after_sweep`,
`after_grid` or `after_newton` takes it on from there. So a pass may be one program's, or that of all programs of a row.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: N803  (Triton writes compile-time arguments in capitals)

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fusion_kernels import search as shared
from fusion_kernels.triton.state import DONE, GRID, NEWTON, SWEEP, Best, Goal, Next, State
from fusion_kernels.triton.sums import FIRST_POINTS, INF, POINTS, at

GRID_POINTS = tl.constexpr(shared.GRID_POINTS)
STEPS_PER_UNIT = tl.constexpr(float(shared.GRID_STEPS_PER_UNIT))
GRID_STEP = tl.constexpr(1.0 / shared.GRID_STEPS_PER_UNIT)
CELLS = tl.constexpr(shared.CELLS)
MESH = tl.constexpr(shared.MESH)
LEVELS = tl.constexpr(shared.LEVELS)
NEWTON_STEPS = tl.constexpr(shared.NEWTON_STEPS)
ROUGH = tl.constexpr(shared.ROUGH)
RELATIVE = tl.constexpr(shared.RELATIVE)
ABSOLUTE = tl.constexpr(shared.ABSOLUTE)
MARGIN = tl.constexpr(shared.MARGIN)
FLOOR = tl.constexpr(shared.FLOOR)
TAME = tl.constexpr(shared.TAME)


class Ends(NamedTuple):
    """The points of a sweep, [16] of which the first POINTS are meant: the left or right ends of its cells."""

    value: Any  # A - A(0)
    mean: Any  # A'
    spread: Any  # A''
    f: Any
    g: Any


@triton.jit
def first_points(limit, grid):
    """The step of the first sweep, which starts at 0, and the largest weight that any sweep reaches."""
    step = tl.where(grid, GRID_STEP, limit / (FIRST_POINTS - 1))
    return step, tl.where(grid, 3 * POINTS * GRID_STEP, limit)


@triton.jit
def started(facts, a, b, limit, grid, trust):
    """The `State` of a search before its first sweep, for the targets a and b; `again` is for one that is lost."""
    zero = tl.full((), 0.0, tl.float32)
    step, furthest = first_points(limit, grid)
    loss = (a * a + b * b) * tl.where(grid, 1.0, 1 - MARGIN)
    going = (facts.top > -INF) & (grid | ((limit > 0) & (loss >= ABSOLUTE)))
    phase = tl.where(going, tl.where(grid, GRID, SWEEP), DONE).to(tl.float32)
    return State(
        facts.top,
        facts.centre,
        (furthest * facts.reach <= TAME).to(tl.float32),
        trust,
        Goal(a, b, limit, zero, zero),
        Best(zero, loss, zero, zero),
        Next(phase, zero, zero, zero, zero, step),
    )


@triton.jit
def again(state):
    """The `State` of a search whose first sweep could not be used: the next one has POINTS as all later ones."""
    following = state.next
    step = tl.where(following.phase == GRID, following.step, state.goal.limit / CELLS)
    following = Next(following.phase, following.turn, following.at, following.low, following.high, step)
    return State(state.top, state.centre, state.tame, state.trust, state.goal, state.best, following)


@triton.jit
def _divergences(x, value, mean, goal):
    """f and g at x from A and A'."""
    return tl.maximum(x * mean - value, 0.0), tl.maximum(value - x * goal.mean, 0.0)


@triton.jit
def _loss(f, g, goal):
    return (f - goal.a) * (f - goal.a) + (g - goal.b) * (g - goal.b)


@triton.jit
def _better(best, x, loss, f, g):
    """`best`, or the candidate where that is lower."""
    lower = loss < best.loss
    return Best(
        tl.where(lower, x, best.x),
        tl.where(lower, loss, best.loss),
        tl.where(lower, f, best.f),
        tl.where(lower, g, best.g),
    )


@triton.jit
def _best_of(best, x, loss, f, g):
    """`best`, or the first smallest of the candidate vectors where that is lower."""
    k = tl.argmin(loss, 0)
    return _better(best, at(x, k), at(loss, k), at(f, k), at(g, k))


@triton.jit
def _goal(state, value, mean):
    """The goal, with A and A' at 0 from the first sweep."""
    goal, first = state.goal, state.next.turn == 0
    return Goal(
        goal.a,
        goal.b,
        goal.limit,
        tl.where(first, at(value, 0), goal.start),
        tl.where(first, at(mean, 0), goal.mean),
    )


@triton.jit
def after_grid(state, value, mean, POINTS: tl.constexpr):
    """The search after POINTS more of the weights of Algorithm 1: the first smallest L counts."""
    index = tl.arange(0, 16)
    goal = _goal(state, value, mean)
    # Turns count points here.
    k = state.next.turn.to(tl.int32) + index
    # Rounded once, as everywhere: a card's own division is not, and 0.9 would miss a largest weight of 0.9.
    x = tl.div_rn(k.to(tl.float32), tl.full([16], STEPS_PER_UNIT, tl.float32))
    f, g = _divergences(x, value - goal.start, mean, goal)
    counts = (index < POINTS) & (k > 0) & (k < GRID_POINTS) & (x <= goal.limit)
    best = _best_of(state.best, x, tl.where(counts, _loss(f, g, goal), INF), f, g)
    turn = state.next.turn + POINTS
    further = tl.div_rn(turn, tl.full((), STEPS_PER_UNIT, tl.float32))
    more = (turn < GRID_POINTS) & (further <= goal.limit)
    phase = tl.where(more, GRID, DONE).to(tl.float32)
    zero = tl.full((), 0.0, tl.float32)
    following = Next(phase, turn, further, zero, zero, state.next.step)
    return State(state.top, state.centre, state.tame, state.trust, goal, best, following)


@triton.jit
def after_sweep(state, value, mean, spread, POINTS: tl.constexpr):
    """The search after a sweep, of which these are A, A' and A''."""
    cells: tl.constexpr = POINTS - 1
    index = tl.arange(0, 16)
    goal = _goal(state, value, mean)
    low, step, level = state.next.at, state.next.step, state.next.turn
    # Sums of rounded steps may pass the limit by a bit of float32, and no weight may.
    x = tl.minimum(low + step * index.to(tl.float32), goal.limit)
    value -= goal.start
    f, g = _divergences(x, value, mean, goal)
    best = _best_of(state.best, x, tl.where(index < POINTS, _loss(f, g, goal), INF), f, g)
    left = Ends(value, mean, spread, f, g)
    right = _following(left)
    alive = (index < cells) & _may_hold_less(left, right, best, goal)
    worst = tl.max(tl.where(alive, _roughness(left, right, x, step, goal), 0.0), 0)
    cell, bent = _lowest(_interpolated(left, right, x, step, alive, goal))

    some = tl.max(alive.to(tl.int32), 0) > 0
    settled = (worst <= ROUGH) | (level == LEVELS - 1)
    first = tl.min(tl.where(alive, index, cells), 0)
    last = tl.max(tl.where(alive, index, 0), 0)
    wide = last + 1 - first > cells // 2
    first = tl.where(wide, tl.maximum(cell - 1, 0), first)
    last = tl.where(wide, tl.minimum(cell + 1, cells - 1), last)
    phase = tl.where(some, tl.where(settled, NEWTON, SWEEP), DONE).to(tl.float32)
    following = Next(
        phase,
        tl.where(settled, 0.0, level + 1),
        tl.minimum(tl.where(settled, low + step * (cell + bent / MESH), low + step * first), goal.limit),
        low + step * tl.maximum(cell - 1, 0),
        tl.minimum(low + step * tl.minimum(cell + 2, cells), goal.limit),
        step * (last + 1 - first) / CELLS,
    )
    return State(state.top, state.centre, state.tame, state.trust, goal, best, following)


@triton.jit
def after_points(state, value, mean, spread, POINTS: tl.constexpr):
    """The search after the points that it wanted, of which these are A, A' and A''."""
    # A `return` in each branch would not compile with Triton 3.6 and 3.7.
    if state.next.phase == GRID:
        state = after_grid(state, value, mean, POINTS)
    else:
        state = after_sweep(state, value, mean, spread, POINTS)
    return state


@triton.jit
def _following(ends):
    """The right ends of the cells whose left ends these are."""
    following = tl.minimum(tl.arange(0, 16) + 1, 15)
    return Ends(
        tl.gather(ends.value, following, 0),
        tl.gather(ends.mean, following, 0),
        tl.gather(ends.spread, following, 0),
        tl.gather(ends.f, following, 0),
        tl.gather(ends.g, following, 0),
    )


@triton.jit
def _may_hold_less(left, right, best, goal):
    """[16]: whether L in a cell may be lower than the best: (f, g) stays in the box that its ends span."""
    miss_f = tl.maximum(left.f - goal.a, 0.0) + tl.maximum(goal.a - right.f, 0.0)
    miss_g = tl.maximum(left.g - goal.b, 0.0) + tl.maximum(goal.b - right.g, 0.0)
    return miss_f * miss_f + miss_g * miss_g < best.loss * (1 - RELATIVE) - ABSOLUTE


@triton.jit
def _roughness(left, right, x, step, goal):
    """[16]: how far A'' at a cell's ends is from the cubic that A and A' imply, as a share of what f gains in it."""
    rise = right.mean - left.mean
    bend = 6 * ((right.value - left.value) / step - (left.mean + right.mean) / 2)
    surprise = tl.abs(left.spread * step - rise - bend) + tl.abs(right.spread * step - rise + bend)
    return surprise * (x + step) / (right.f - left.f + 1e-4 * (goal.a + goal.b) + FLOOR)


@triton.jit
def _interpolated(left, right, x, step, alive, goal):
    """[16, 16]: L at MESH + 1 points of each cell by the quintic through its ends; inf where it may not be lower."""
    index = tl.arange(0, 16)
    s = (index.to(tl.float32) / MESH)[None, :]
    s2, s3 = s * s, s * s * s
    s4, s5 = s2 * s2, s2 * s3
    l0, l1, l2 = left.value[:, None], (left.mean * step)[:, None], (left.spread * step * step)[:, None]
    r0, r1, r2 = right.value[:, None], (right.mean * step)[:, None], (right.spread * step * step)[:, None]
    # The Hermite basis and its slopes, as in `fusion_kernels.search.hermite`.
    up, up_slope = 10 * s3 - 15 * s4 + 6 * s5, 30 * s2 - 60 * s3 + 30 * s4
    inner = l0 + (r0 - l0) * up + l1 * (s - 6 * s3 + 8 * s4 - 3 * s5) + r1 * (-4 * s3 + 7 * s4 - 3 * s5)
    inner += l2 * (0.5 * s2 - 1.5 * s3 + 1.5 * s4 - 0.5 * s5) + r2 * (0.5 * s3 - s4 + 0.5 * s5)
    slope = (r0 - l0) * up_slope + l1 * (1 - 18 * s2 + 32 * s3 - 15 * s4) + r1 * (-12 * s2 + 28 * s3 - 15 * s4)
    slope += l2 * (s - 4.5 * s2 + 6 * s3 - 2.5 * s4) + r2 * (1.5 * s2 - 4 * s3 + 2.5 * s4)
    spot = x[:, None] + step * s
    mesh = _loss(spot * slope / step - inner, inner - spot * goal.mean, goal)
    return tl.where(alive[:, None] & (index <= MESH)[None, :] & (mesh == mesh), mesh, INF)


@triton.jit
def _lowest(mesh):
    """The cell of the smallest L, and where in the cell a parabola through it and its neighbours is lowest."""
    flat = tl.reshape(mesh, [256])
    where = tl.argmin(flat, 0)
    cell, step = where // 16, where % 16
    before, here, after = at(flat, where - 1), at(flat, where), at(flat, where + 1)
    bent = 0.5 * (before - after) / tl.maximum(before - 2 * here + after, 1e-30)
    return cell, step + tl.where((step > 0) & (step < MESH), bent, 0.0)


@triton.jit
def after_newton(state, m0, m1, m2, m3, shift):
    """The search after the moments, times exp(-shift), at the weight where Newton was; never worse than before."""
    goal, best, x = state.goal, state.best, state.next.at
    low, high = state.next.low, state.next.high
    mean, square, cube = m1 / m0, m2 / m0, m3 / m0
    gain = tl.log(m0) + shift - goal.start
    spread = tl.maximum(square - mean * mean, 0.0)
    skew = cube - 3 * mean * square + 2 * mean * mean * mean
    f, g = _divergences(x, gain, mean, goal)
    loss = _loss(f, g, goal)
    best = _better(best, x, loss, f, g)
    slope_f, slope_g = x * spread, mean - goal.mean
    slope = (f - goal.a) * slope_f + (g - goal.b) * slope_g
    steady = slope_f * slope_f + slope_g * slope_g
    bend = steady + (f - goal.a) * (spread + x * skew) + (g - goal.b) * spread
    bend = tl.where(bend < 0.1 * steady, steady, bend)
    high, low = tl.where(slope > 0, x, high), tl.where(slope > 0, low, x)
    wanted = x - slope / tl.where(bend > 0, bend, 1.0)
    inside = (wanted >= low) & (wanted <= high) & (bend > 0)
    at_end = (wanted > high) & (high - x < 1e-9 + 1e-7 * x)
    then = tl.where(inside, wanted, tl.where(at_end, high, 0.5 * (low + high)))
    step = then - x
    error = step * step * tl.maximum(tl.sqrt(spread), tl.abs(skew) / (spread + 1e-30))
    # Without a bend nothing is known of the error: at 0, where L is always level, or where f and g are saturated.
    settled = (bend > 0) & (bend * error * error <= RELATIVE * loss + 1e-9)
    # The last step needs no evaluation: A is known there by its Taylor series.
    gain += step * (mean + step * (spread / 2 + step * skew / 6))
    f, g = _divergences(then, gain, mean + step * (spread + step * skew / 2), goal)
    best = _better(best, then, tl.where(settled, _loss(f, g, goal), INF), f, g)
    turn = state.next.turn + 1
    phase = tl.where(settled | (turn == NEWTON_STEPS), DONE, NEWTON).to(tl.float32)
    return State(
        state.top,
        state.centre,
        state.tame,
        state.trust,
        goal,
        best,
        Next(phase, turn, then, low, high, state.next.step),
    )
