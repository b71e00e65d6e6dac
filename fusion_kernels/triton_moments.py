"""Sums over one row's vocabulary in Triton: running maxima, targets, and moments of a delta under the tilted P.

With P the softmax of large and w_v(x) = P_v exp(x (delta_v - centre)), the moments are
S_j(x) = sum_v w_v(x) (delta_v - centre)^j; A = log S_0 and its derivatives follow. `centre` is delta at large's top
token, so that S_0(x) >= 1 for every x. `problem` is (large, base, expert, common, top, centre): three pointers to float
rows, the number of common ids, large's largest logit and the centre.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: N803, RUF005  (Triton writes compile-time arguments in capitals)

import triton
import triton.language as tl

from fusion_kernels import solver

POINTS = tl.constexpr(solver.CELLS + 1)
INF = tl.constexpr(float("inf"))


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
def scan(large, base, expert, state):
    """Take one chunk into the running maxima and sums of a row and expert, see `_finish`.

    The last of the state is 1 where the expert is broken, 2 where the base is, 3 where both are.
    """
    top, base_top, expert_top, base_sum, expert_sum, base_mean, expert_mean, offset, level, bad = state
    bad |= 2 * broken(base) | broken(expert)
    delta = delta_of(base, expert)
    both = (base > -INF) & (expert > -INF)
    base, expert = tl.where(both, base, -INF), tl.where(both, expert, -INF)
    top = tl.maximum(top, tl.max(large, 0))
    new_base, new_expert = tl.maximum(base_top, tl.max(base, 0)), tl.maximum(expert_top, tl.max(expert, 0))
    seen = new_base > -INF
    # The divergences do not change with the offset of delta; near the difference of the tops they round least.
    offset = tl.where((base_top == -INF) & seen, new_expert - new_base, offset)
    base_shift, expert_shift = tl.where(seen, new_base, 0.0), tl.where(seen, new_expert, 0.0)
    base_scale, expert_scale = tl.exp(base_top - base_shift), tl.exp(expert_top - expert_shift)
    q, q_t = tl.exp(base - base_shift), tl.exp(expert - expert_shift)
    base_sum = base_sum * base_scale + tl.sum(q, 0)
    # sum_v exp(e_v - top) (e_v - top), for the entropy; a new top shifts every term by the difference.
    rise = tl.where(expert_sum > 0, expert_top - expert_shift, 0.0)
    height = tl.where(expert > -INF, expert - expert_shift, 0.0)
    level = (level + expert_sum * rise) * expert_scale + tl.sum(q_t * height, 0)
    expert_sum = expert_sum * expert_scale + tl.sum(q_t, 0)
    base_mean = base_mean * base_scale + tl.sum(q * (delta - offset), 0)
    expert_mean = expert_mean * expert_scale + tl.sum(q_t * (delta - offset), 0)
    return top, new_base, new_expert, base_sum, expert_sum, base_mean, expert_mean, offset, level, bad


@triton.jit
def finish(state):
    """a = KL(Q_t || Q), b = KL(Q || Q_t) and the entropy of Q_t from the sums of `scan`."""
    _, base_top, expert_top, base_sum, expert_sum, base_mean, expert_mean, offset, level, _ = state
    some = base_sum > 0
    base_sum, expert_sum = tl.where(some, base_sum, 1.0), tl.where(some, expert_sum, 1.0)
    shift = tl.where(some, expert_top - offset - base_top + tl.log(expert_sum / base_sum), 0.0)
    entropy = tl.maximum(tl.log(expert_sum) - level / expert_sum, 0.0)
    return tl.maximum(expert_mean / expert_sum - shift, 0.0), tl.maximum(shift - base_mean / base_sum, 0.0), entropy


@triton.jit
def first_state():
    """What `scan` starts from."""
    low, zero = tl.full((), -INF, tl.float32), tl.full((), 0.0, tl.float32)
    return low, low, low, zero, zero, zero, zero, zero, zero, tl.full((), 0, tl.int32)


@triton.jit
def _chunk(problem, ids):
    """(log P up to a constant, delta - centre) at `ids`, for one expert."""
    large, base, expert, common, top, centre = problem
    delta = delta_of(load(base, ids, common), load(expert, ids, common)) - centre
    # Past the common ids log P is -inf; their delta must stay finite, 0 is.
    return load(large, ids, common) - top, tl.where(ids < common, delta, 0.0)


@triton.jit
def span(problem, top, BLOCK: tl.constexpr):
    """The centre, delta at large's top token, and how far above it the largest delta is."""
    centre, highest = tl.full((), -INF, tl.float32), tl.full((), -INF, tl.float32)
    for start in tl.range(0, problem[3], BLOCK):
        large, delta = _chunk(problem, start + tl.arange(0, BLOCK))
        centre = tl.maximum(centre, tl.max(tl.where(large == top, delta, -INF), 0))
        highest = tl.maximum(highest, tl.max(delta, 0))
    return centre, highest - centre


@triton.jit
def highest(problem, x, BLOCK: tl.constexpr):
    """The largest log weight at x."""
    found = tl.full((), -INF, tl.float32)
    for start in tl.range(0, problem[3], BLOCK):
        log_p, d = _chunk(problem, start + tl.arange(0, BLOCK))
        found = tl.maximum(found, tl.max(log_p + x * d, 0))
    return found


@triton.jit
def moments(problem, x, shift, BLOCK: tl.constexpr):
    """S_0 .. S_3 at x, times exp(-shift)."""
    s0, s1 = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    s2, s3 = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, problem[3], BLOCK):
        log_p, d = _chunk(problem, start + tl.arange(0, BLOCK))
        w = tl.exp(log_p + x * d - shift)
        s0 += w
        s1 += w * d
        s2 += w * d * d
        s3 += w * d * d * d
    return tl.sum(s0, 0), tl.sum(s1, 0), tl.sum(s2, 0), tl.sum(s3, 0)


@triton.jit
def points(problem, first, step, tame, BLOCK: tl.constexpr):
    """[16] vectors of A, A', A'' at first + k step, of which the first POINTS are meant."""
    index = tl.arange(0, 16)
    value = tl.zeros([16], tl.float32)
    mean, spread = tl.zeros([16], tl.float32), tl.zeros([16], tl.float32)
    if tame:
        # One exp(step d) per token; each further point is a multiplication. The sums stay in lanes until the end.
        sums = ()
        for _ in tl.static_range(3 * POINTS):
            sums = sums + (tl.zeros([BLOCK], tl.float32),)
        for start in tl.range(0, problem[3], BLOCK):
            log_p, d = _chunk(problem, start + tl.arange(0, BLOCK))
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
            shift = highest(problem, x, BLOCK)
            s0, s1, s2, _ = moments(problem, x, shift, BLOCK)
            value = tl.where(index == k, tl.log(s0) + shift, value)
            mean = tl.where(index == k, s1 / s0, mean)
            spread = tl.where(index == k, s2 / s0 - (s1 / s0) * (s1 / s0), spread)
    return value, mean, tl.maximum(spread, 0.0)
