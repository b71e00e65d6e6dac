"""Sums over one row's vocabulary in Triton: running maxima, targets, and moments of a delta under the tilted P.

With P the softmax of large and w_v(x) = P_v exp(x (delta_v - centre)), the moments are
S_j(x) = sum_v w_v(x) (delta_v - centre)^j; A = log S_0 and its derivatives follow. `centre` is delta at large's top
token, so that S_0(x) >= 1 for every x.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: N803, RUF005  (Triton writes compile-time arguments in capitals)

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fusion_kernels.search import CELLS

POINTS = tl.constexpr(CELLS + 1)
INF = tl.constexpr(float("inf"))


class Line(NamedTuple):
    """One row along one delta."""

    large: Any  # pointer to the row, of any float; so are the next two
    base: Any
    expert: Any
    common: Any  # V_c
    top: Any  # the largest of large's common logits
    centre: Any  # delta at large's top token


class Sums(NamedTuple):
    """The running maxima and sums of `scan`; float32 but for the last."""

    top: Any  # the largest of large's logits
    base_top: Any
    expert_top: Any
    base_sum: Any  # of exp(base - base_top); the expert's likewise
    expert_sum: Any
    base_mean: Any  # of exp(base - base_top) (delta - offset); the expert's likewise
    expert_mean: Any
    offset: Any
    level: Any  # of exp(expert - expert_top) (expert - expert_top)
    bad: Any  # 1 where the expert is broken, 2 where the base is, 3 where both are


@triton.jit
def load(row, ids, length):
    """The logits at `ids` in float32, -inf past the end."""
    return tl.load(row + ids, mask=ids < length, other=-INF).to(tl.float32)


@triton.jit
def delta_of(base, expert):
    """expert - base, 0 where either masks its token."""
    return tl.where((base > -INF) & (expert > -INF), expert - base, 0.0)


@triton.jit
def broken(values):
    """Whether NaN or +inf occurs."""
    return tl.max(((values != values) | (values == INF)).to(tl.int32), 0)


@triton.jit
def at(vector, k):
    """vector[k]."""
    return tl.sum(tl.where(tl.arange(0, vector.shape[0]) == k, vector, 0.0), 0)


@triton.jit
def scan(sums, large, base, expert):
    """Take one chunk of logits into the `Sums` of a row and expert."""
    bad = sums.bad | 2 * broken(base) | broken(expert)
    delta = delta_of(base, expert)
    both = (base > -INF) & (expert > -INF)
    base, expert = tl.where(both, base, -INF), tl.where(both, expert, -INF)
    base_top, expert_top = tl.maximum(sums.base_top, tl.max(base, 0)), tl.maximum(sums.expert_top, tl.max(expert, 0))
    seen = base_top > -INF
    # The divergences do not change with the offset of delta; near the difference of the tops they round least.
    offset = tl.where((sums.base_top == -INF) & seen, expert_top - base_top, sums.offset)
    base_shift, expert_shift = tl.where(seen, base_top, 0.0), tl.where(seen, expert_top, 0.0)
    base_scale, expert_scale = tl.exp(sums.base_top - base_shift), tl.exp(sums.expert_top - expert_shift)
    q, q_t = tl.exp(base - base_shift), tl.exp(expert - expert_shift)
    # A new top shifts every term of `level` by the difference.
    rise = tl.where(sums.expert_sum > 0, sums.expert_top - expert_shift, 0.0)
    height = tl.where(expert > -INF, expert - expert_shift, 0.0)
    return Sums(
        top=tl.maximum(sums.top, tl.max(large, 0)),
        base_top=base_top,
        expert_top=expert_top,
        base_sum=sums.base_sum * base_scale + tl.sum(q, 0),
        expert_sum=sums.expert_sum * expert_scale + tl.sum(q_t, 0),
        base_mean=sums.base_mean * base_scale + tl.sum(q * (delta - offset), 0),
        expert_mean=sums.expert_mean * expert_scale + tl.sum(q_t * (delta - offset), 0),
        offset=offset,
        level=(sums.level + sums.expert_sum * rise) * expert_scale + tl.sum(q_t * height, 0),
        bad=bad,
    )


@triton.jit
def finish(sums):
    """a = KL(Q_t || Q), b = KL(Q || Q_t) and the entropy of Q_t."""
    some = sums.base_sum > 0
    base_sum, expert_sum = tl.where(some, sums.base_sum, 1.0), tl.where(some, sums.expert_sum, 1.0)
    shift = tl.where(some, sums.expert_top - sums.offset - sums.base_top + tl.log(expert_sum / base_sum), 0.0)
    entropy = tl.maximum(tl.log(expert_sum) - sums.level / expert_sum, 0.0)
    a, b = sums.expert_mean / expert_sum - shift, shift - sums.base_mean / base_sum
    return tl.maximum(a, 0.0), tl.maximum(b, 0.0), entropy


@triton.jit
def no_sums():
    """What `scan` starts from."""
    low, zero = tl.full((), -INF, tl.float32), tl.full((), 0.0, tl.float32)
    return Sums(low, low, low, zero, zero, zero, zero, zero, zero, tl.full((), 0, tl.int32))


@triton.jit
def _chunk(line, ids):
    """(log P up to a constant, delta - centre) at `ids`."""
    delta = delta_of(load(line.base, ids, line.common), load(line.expert, ids, line.common)) - line.centre
    # Past the common ids log P is -inf; their delta must stay finite, 0 is.
    return load(line.large, ids, line.common) - line.top, tl.where(ids < line.common, delta, 0.0)


@triton.jit
def centred(line, BLOCK: tl.constexpr):
    """The line with its centre, and its reach: how far above the centre the largest delta is."""
    centre, highest = tl.full((), -INF, tl.float32), tl.full((), -INF, tl.float32)
    for start in tl.range(0, line.common, BLOCK):
        log_p, delta = _chunk(line, start + tl.arange(0, BLOCK))
        centre = tl.maximum(centre, tl.max(tl.where(log_p == 0.0, delta, -INF), 0))
        highest = tl.maximum(highest, tl.max(delta, 0))
    return Line(line.large, line.base, line.expert, line.common, line.top, centre), highest - centre


@triton.jit
def highest(line, x, BLOCK: tl.constexpr):
    """The largest log weight at x."""
    found = tl.full((), -INF, tl.float32)
    for start in tl.range(0, line.common, BLOCK):
        log_p, d = _chunk(line, start + tl.arange(0, BLOCK))
        found = tl.maximum(found, tl.max(log_p + x * d, 0))
    return found


@triton.jit
def moments(line, x, shift, BLOCK: tl.constexpr):
    """S_0 .. S_3 at x, times exp(-shift)."""
    s0, s1 = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    s2, s3 = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, line.common, BLOCK):
        log_p, d = _chunk(line, start + tl.arange(0, BLOCK))
        w = tl.exp(log_p + x * d - shift)
        s0 += w
        s1 += w * d
        s2 += w * d * d
        s3 += w * d * d * d
    return tl.sum(s0, 0), tl.sum(s1, 0), tl.sum(s2, 0), tl.sum(s3, 0)


@triton.jit
def points(line, first, step, tame, BLOCK: tl.constexpr):
    """[16] vectors of A, A', A'' at first + k step, of which the first POINTS are meant."""
    index = tl.arange(0, 16)
    value = tl.zeros([16], tl.float32)
    mean, spread = tl.zeros([16], tl.float32), tl.zeros([16], tl.float32)
    if tame:
        # One exp(step d) per token; each further point is a multiplication. The sums stay in lanes until the end.
        sums = ()
        for _ in tl.static_range(3 * POINTS):
            sums = sums + (tl.zeros([BLOCK], tl.float32),)
        for start in tl.range(0, line.common, BLOCK):
            log_p, d = _chunk(line, start + tl.arange(0, BLOCK))
            w, factor = tl.exp(log_p + first * d), tl.exp(step * d)
            new = ()
            for k in tl.static_range(POINTS):
                wd = w * d
                new = new + (sums[3 * k] + w, sums[3 * k + 1] + wd, sums[3 * k + 2] + wd * d)
                w = w * factor
            sums = new
        for k in tl.static_range(POINTS):
            s0, s1, s2 = tl.sum(sums[3 * k], 0), tl.sum(sums[3 * k + 1], 0), tl.sum(sums[3 * k + 2], 0)
            value = tl.where(index == k, tl.log(s0), value)
            mean = tl.where(index == k, s1 / s0, mean)
            spread = tl.where(index == k, s2 / s0 - (s1 / s0) * (s1 / s0), spread)
    else:
        for k in tl.range(0, POINTS):
            x = first + k * step
            shift = highest(line, x, BLOCK)
            s0, s1, s2, _ = moments(line, x, shift, BLOCK)
            value = tl.where(index == k, tl.log(s0) + shift, value)
            mean = tl.where(index == k, s1 / s0, mean)
            spread = tl.where(index == k, s2 / s0 - (s1 / s0) * (s1 / s0), spread)
    return value, mean, tl.maximum(spread, 0.0)
