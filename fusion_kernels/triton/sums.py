"""What one program sums over its ids of a row, along one expert's delta.

A row is cut into chunks of a fixed number of ids, and a chunk is one program's. So a row's result depends on its own
logits alone: never on how many rows there are beside it, or on which multiprocessor takes them.

With P the softmax of large and w_v(x) = P_v exp(x (delta_v - centre)), the moments are
S_j(x) = sum_v w_v(x) (delta_v - centre)^j; A = log S_0 and its derivatives follow. `centre` is delta at large's top
token, so that S_0(x) >= 1 for every x. In a first look at a chunk, top and centre are the chunk's own;
`fusion_kernels.triton.merging` moves the sums to the row's.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: N803, RUF005  (Triton writes compile-time arguments in capitals)

from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton import knobs
from triton.language.extra import libdevice

from fusion_kernels.search import CELLS

# Of a sweep. The first one looks at fewer: Newton follows it in nearly every row, and needs no more than a start.
POINTS = tl.constexpr(CELLS + 1)
FIRST_POINTS = tl.constexpr(CELLS // 2 + 1)
INF = tl.constexpr(float("inf"))
INTERPRETED = tl.constexpr(knobs.runtime.interpret)


class Line(NamedTuple):
    """The ids first .. stop of one row, along one delta."""

    large: Any  # pointer to the row, of any float; so are the next two
    against: Any
    expert: Any
    first: Any
    stop: Any  # at most V_c
    top: Any  # what large's logits are relative to
    centre: Any  # what delta is relative to


class Tops(NamedTuple):
    """The maxima of a chunk."""

    large: Any  # of large's logits
    centre: Any  # delta at the id of `large`
    delta: Any  # of delta
    against: Any  # of the logits that the expert is compared with and does not mask
    expert: Any  # of the expert's logits that are not masked there
    broken: Any  # which members hold NaN or +inf: LARGE + AGAINST + EXPERT


class Peaks(NamedTuple):
    """The maxima of a chunk while they grow, [BLOCK] each; the last three are of all logits, NaN once one is NaN."""

    large: Any
    centre: Any
    delta: Any
    against: Any
    expert: Any
    any_large: Any
    any_against: Any
    any_expert: Any


class Masses(NamedTuple):
    """The sums of a chunk from which the targets follow; each relative to the chunk's own `Tops`."""

    against: Any  # of r_t = exp(against - top)
    expert: Any  # of q_t = exp(expert - top)
    against_mean: Any  # of r_t (delta - offset), with the offset expert top - against top
    expert_mean: Any  # of q_t (delta - offset)
    level: Any  # of q_t (expert - top)


# The bits of `Tops.broken`.
LARGE = tl.constexpr(1)
AGAINST = tl.constexpr(2)
EXPERT = tl.constexpr(4)


@triton.jit
def exp(x):
    """e^x, and 0 below the smallest normal number: on a card two instructions, of the five of Triton's own."""
    if INTERPRETED:
        return tl.exp(x)
    else:  # noqa: RET505  (Triton returns from both branches of an `if`, or from none)
        return libdevice.fast_expf(x)


@triton.jit
def load(row, ids, stop, MASKED: tl.constexpr):
    """The logits at `ids` in float32; -inf from `stop` on, if `MASKED`, otherwise no id may be there."""
    if MASKED:
        return tl.load(row + ids, mask=ids < stop, other=-INF).to(tl.float32)
    else:  # noqa: RET505  (Triton returns from both branches of an `if`, or from none)
        return tl.load(row + ids).to(tl.float32)


@triton.jit
def delta_of(against, expert):
    """expert - against, 0 where either masks its token."""
    delta = expert - against
    return tl.where(tl.abs(delta) < INF, delta, 0.0)


@triton.jit
def at(vector, k):
    """vector[k]."""
    return tl.sum(tl.where(tl.arange(0, vector.shape[0]) == k, vector, 0.0), 0)


@triton.jit
def whole_blocks(first, stop, BLOCK: tl.constexpr):
    """The end of the last block that is full: what follows up to `stop` is less than a block."""
    return first + tl.maximum(stop - first, 0) // BLOCK * BLOCK


@triton.jit
def _peak(peak, values):
    """The larger of the two, NaN where either is."""
    return tl.maximum(peak, values, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _is_broken(peak):
    """1 where a peak is NaN or +inf, and so one of the logits is."""
    return tl.max((peak < INF).to(tl.int32) ^ 1, 0)


@triton.jit
def broken(row, first, stop, BLOCK: tl.constexpr):
    """1 where NaN or +inf is among a row's logits first .. stop."""
    peak = tl.full([BLOCK], -INF, tl.float32)
    middle = whole_blocks(first, stop, BLOCK)
    for start in tl.range(first, middle, BLOCK):
        peak = _peak(peak, load(row, start + tl.arange(0, BLOCK), stop, False))
    if middle < stop:
        peak = _peak(peak, load(row, middle + tl.arange(0, BLOCK), stop, True))
    return _is_broken(peak)


@triton.jit
def _add_peaks(peaks, line, ids, MASKED: tl.constexpr):
    large, expert = load(line.large, ids, line.stop, MASKED), load(line.expert, ids, line.stop, MASKED)
    against = load(line.against, ids, line.stop, MASKED)
    delta = expert - against
    both = tl.abs(delta) < INF
    delta = tl.where(both, delta, 0.0)
    # Lanes past the end and masked tokens count with their delta, 0 or not: they are in the sums too, with the weight
    # exp(-inf), which times a factor that has overflown would be no number.
    higher = large > peaks.large
    return Peaks(
        tl.where(higher, large, peaks.large),
        tl.where(higher, delta, peaks.centre),
        tl.maximum(peaks.delta, delta),
        tl.maximum(peaks.against, tl.where(both, against, -INF)),
        tl.maximum(peaks.expert, tl.where(both, expert, -INF)),
        _peak(peaks.any_large, large),
        _peak(peaks.any_against, against),
        _peak(peaks.any_expert, expert),
    )


@triton.jit
def tops_of(line, BLOCK: tl.constexpr):
    """The `Tops` of a chunk."""
    low, zero = tl.full([BLOCK], -INF, tl.float32), tl.zeros([BLOCK], tl.float32)
    peaks = Peaks(low, zero, low, low, low, low, low, low)
    middle = whole_blocks(line.first, line.stop, BLOCK)
    for start in tl.range(line.first, middle, BLOCK):
        peaks = _add_peaks(peaks, line, start + tl.arange(0, BLOCK), False)
    if middle < line.stop:
        peaks = _add_peaks(peaks, line, middle + tl.arange(0, BLOCK), True)
    large = tl.max(peaks.large, 0)
    return Tops(
        large,
        tl.max(tl.where(peaks.large == large, peaks.centre, -INF), 0),
        tl.max(peaks.delta, 0),
        tl.max(peaks.against, 0),
        tl.max(peaks.expert, 0),
        _is_broken(peaks.any_large) * LARGE
        + _is_broken(peaks.any_against) * AGAINST
        + _is_broken(peaks.any_expert) * EXPERT,
    )


@triton.jit
def _weigh(line, ids, MASKED: tl.constexpr):
    """(log P up to a constant, delta - centre) at `ids`."""
    large = load(line.large, ids, line.stop, MASKED) - line.top
    delta = delta_of(load(line.against, ids, line.stop, MASKED), load(line.expert, ids, line.stop, MASKED))
    return large, delta - line.centre


@triton.jit
def _add_moments(sums, line, x, shift, ids, MASKED: tl.constexpr):
    log_p, d = _weigh(line, ids, MASKED)
    w = exp(log_p + x * d - shift)
    wd = w * d
    wdd = wd * d
    return sums[0] + w, sums[1] + wd, sums[2] + wdd, sums[3] + wdd * d


@triton.jit
def moments(line, x, shift, BLOCK: tl.constexpr):
    """S_0 .. S_3 at x, times exp(-shift)."""
    zero = tl.zeros([BLOCK], tl.float32)
    sums = (zero, zero, zero, zero)
    middle = whole_blocks(line.first, line.stop, BLOCK)
    for start in tl.range(line.first, middle, BLOCK):
        sums = _add_moments(sums, line, x, shift, start + tl.arange(0, BLOCK), False)
    if middle < line.stop:
        sums = _add_moments(sums, line, x, shift, middle + tl.arange(0, BLOCK), True)
    return tl.sum(sums[0], 0), tl.sum(sums[1], 0), tl.sum(sums[2], 0), tl.sum(sums[3], 0)


@triton.jit
def _no_points(POINTS: tl.constexpr, BLOCK: tl.constexpr):
    # The sums stay in lanes until the end.
    sums = ()
    for _ in tl.static_range(3 * POINTS):
        sums = sums + (tl.zeros([BLOCK], tl.float32),)
    return sums


@triton.jit
def _add_points(sums, w, factor, d, POINTS: tl.constexpr):
    # One exp(step d) per token; each further point is a multiplication.
    dd = d * d
    new = ()
    for k in tl.static_range(POINTS):
        new = new + (sums[3 * k] + w, sums[3 * k + 1] + w * d, sums[3 * k + 2] + w * dd)
        w = w * factor
    return new


@triton.jit
def _total(sums, POINTS: tl.constexpr):
    """[16] vectors of S_0, S_1, S_2, of which the first POINTS are meant."""
    index = tl.arange(0, 16)
    s0, s1, s2 = tl.zeros([16], tl.float32), tl.zeros([16], tl.float32), tl.zeros([16], tl.float32)
    for k in tl.static_range(POINTS):
        s0 = tl.where(index == k, tl.sum(sums[3 * k], 0), s0)
        s1 = tl.where(index == k, tl.sum(sums[3 * k + 1], 0), s1)
        s2 = tl.where(index == k, tl.sum(sums[3 * k + 2], 0), s2)
    return s0, s1, s2


@triton.jit
def _add_sweep(sums, line, first, step, ids, MASKED: tl.constexpr):
    log_p, d = _weigh(line, ids, MASKED)
    return _add_points(sums, exp(log_p + first * d), exp(step * d), d, POINTS)


@triton.jit
def sweep(line, first, step, BLOCK: tl.constexpr):
    """[16] vectors of S_0, S_1, S_2 at first + k step, of which the first POINTS are meant.

    Only for lines whose weights stay below exp(TAME): `fusion_kernels.search`.
    """
    sums = _no_points(POINTS, BLOCK)
    middle = whole_blocks(line.first, line.stop, BLOCK)
    for start in tl.range(line.first, middle, BLOCK):
        sums = _add_sweep(sums, line, first, step, start + tl.arange(0, BLOCK), False)
    if middle < line.stop:
        sums = _add_sweep(sums, line, first, step, middle + tl.arange(0, BLOCK), True)
    return _total(sums, POINTS)


@triton.jit
def _add_first_look(masses, sums, line, tops, step, ids, MASKED: tl.constexpr):
    large, expert = load(line.large, ids, line.stop, MASKED), load(line.expert, ids, line.stop, MASKED)
    against = load(line.against, ids, line.stop, MASKED)
    delta = expert - against
    both = tl.abs(delta) < INF
    delta = tl.where(both, delta, 0.0)
    below = tl.where(both, expert - tops.expert, 0.0)
    r_t, q_t = tl.where(both, exp(against - tops.against), 0.0), tl.where(both, exp(below), 0.0)
    off = delta - tl.where(tops.against > -INF, tops.expert - tops.against, 0.0)
    masses = Masses(
        masses.against + r_t,
        masses.expert + q_t,
        masses.against_mean + r_t * off,
        masses.expert_mean + q_t * off,
        masses.level + q_t * below,
    )
    d = delta - line.centre
    return masses, _add_points(sums, exp(large - line.top), exp(step * d), d, FIRST_POINTS)


@triton.jit
def first_look(line, tops, step, BLOCK: tl.constexpr):
    """The `Masses` of a chunk, all 0 where no token is unmasked; the sums of the first sweep, nonsense if wild."""
    zero = tl.zeros([BLOCK], tl.float32)
    masses, sums = Masses(zero, zero, zero, zero, zero), _no_points(FIRST_POINTS, BLOCK)
    middle = whole_blocks(line.first, line.stop, BLOCK)
    for start in tl.range(line.first, middle, BLOCK):
        masses, sums = _add_first_look(masses, sums, line, tops, step, start + tl.arange(0, BLOCK), False)
    if middle < line.stop:
        masses, sums = _add_first_look(masses, sums, line, tops, step, middle + tl.arange(0, BLOCK), True)
    masses = Masses(
        tl.sum(masses.against, 0),
        tl.sum(masses.expert, 0),
        tl.sum(masses.against_mean, 0),
        tl.sum(masses.expert_mean, 0),
        tl.sum(masses.level, 0),
    )
    s0, s1, s2 = _total(sums, FIRST_POINTS)
    return masses, s0, s1, s2


@triton.jit
def highest(line, x, BLOCK: tl.constexpr):
    """The largest log weight at x."""
    found = tl.full([BLOCK], -INF, tl.float32)
    for start in tl.range(line.first, line.stop, BLOCK):
        log_p, d = _weigh(line, start + tl.arange(0, BLOCK), True)
        found = tl.maximum(found, log_p + x * d)
    return tl.max(found, 0)


@triton.jit
def wild_sweep(line, first, step, BLOCK: tl.constexpr):
    """A, A', A'' as `sweep` has them, for any line: every point has a shift of its own."""
    index = tl.arange(0, 16)
    value, mean, spread = tl.zeros([16], tl.float32), tl.zeros([16], tl.float32), tl.zeros([16], tl.float32)
    for k in tl.range(0, POINTS):
        x = first + k * step
        shift = highest(line, x, BLOCK)
        s0, s1, s2, _ = moments(line, x, shift, BLOCK)
        value = tl.where(index == k, tl.log(s0) + shift, value)
        mean = tl.where(index == k, s1 / s0, mean)
        spread = tl.where(index == k, s2 / s0 - (s1 / s0) * (s1 / s0), spread)
    return value, mean, tl.maximum(spread, 0.0)


@triton.jit
def cumulants(s0, s1, s2, POINTS: tl.constexpr):
    """[16]: A, A', A'' from the sums of a sweep; 0 past its points."""
    meant = tl.arange(0, 16) < POINTS
    s0, s1, s2 = tl.where(meant, s0, 1.0), tl.where(meant, s1, 0.0), tl.where(meant, s2, 0.0)
    mean = s1 / s0
    return tl.log(s0), mean, tl.maximum(s2 / s0 - mean * mean, 0.0)
