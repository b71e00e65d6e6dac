"""Sums over one row's vocabulary on the CPU: loading, targets, and the moments of a delta under the tilted P.

With P the softmax of large and w_v(x) = P_v exp(x (delta_v - centre)), the moments are
S_j(x) = sum_v w_v(x) (delta_v - centre)^j. From them A(x) = log S_0(x) and its derivatives follow, and so f and g.
`centre` is delta at large's top token: S_0(x) >= 1 then holds for every x, so no sum can underflow.
Rows are float32; sums run in float32 within a block and in float64 between blocks.
"""

# mypy: disable-error-code="assignment, no-any-return, return-value"
from typing import Any

import numpy as np

from fusion_kernels.cpu.vector import as_float, exp, floats, halves, jit, ordered, unordered

BLOCK = 2048
FLOAT32, BFLOAT16 = 0, 1
# A member's logits in memory: [B, length] numbers of one of the dtypes above, adjacent within a row.
MEMBER = np.dtype([(name, np.int64) for name in ("address", "row_bytes", "length", "dtype")])
# Weights below exp(-FLUSH) of the top are left out; exp of the vector code cannot reach lower.
FLUSH = np.float32(87.0)
# `ordered` keys: no float, no float, -inf (a negative NaN is below it) and +inf (a positive NaN is above it).
_LEAST, _MOST = np.int32(-2147483648), np.int32(2147483647)
_MINUS_INF, _PLUS_INF = np.int32(-2139095041), np.int32(2139095040)
_ZERO = np.float32(0.0)


@jit
def load(member: Any, index: int, length: int, row: Any) -> tuple[float, bool, bool]:
    """Copy the first `length` logits of a `MEMBER`'s row `index`, float32 or bfloat16, to row [length] float32.

    Returns the largest logit, whether -inf occurs, and whether NaN or +inf does.
    """
    address = member.address + index * member.row_bytes
    most, least = _LEAST, _MOST
    if member.dtype == FLOAT32:
        source = floats(address, length)
        for i in range(length):
            value = source[i]
            row[i] = value
            key = ordered(value)
            most = max(most, key)
            least = min(least, key)
    else:
        bits = halves(address, length)
        for i in range(length):
            value = as_float(np.int32(bits[i]) << np.int32(16))
            row[i] = value
            key = ordered(value)
            most = max(most, key)
            least = min(least, key)
    return unordered(most), least <= _MINUS_INF, (most >= _PLUS_INF) | (least < _MINUS_INF)


@jit
def largest(row: Any) -> float:
    """The largest logit of row [n]."""
    key = _LEAST
    for i in range(row.size):
        key = max(key, ordered(row[i]))
    return unordered(key)


@jit
def weigh(row: Any, top: float, weights: Any) -> float:
    """weights = exp(row - top), 0 where that is below exp(-FLUSH); returns their sum."""
    shift, total = np.float32(top), 0.0
    for start in range(0, row.size, BLOCK):
        part, out, s = row[start : start + BLOCK], weights[start : start + BLOCK], _ZERO
        for i in range(part.size):
            x = part[i] - shift
            w = exp(x) if x > -FLUSH else _ZERO
            out[i] = w
            s += w
        total += s
    return total


@jit
def delta_of(expert: Any, against: Any, large: Any, large_top: float, delta: Any) -> tuple[float, float]:
    """delta = expert - against, 0 where either masks; all [n].

    Returns the largest delta among large's top tokens (the centre) and the largest of all.
    """
    top, lowest = np.float32(large_top), np.float32(-np.inf)
    delta_key, centre_key = _LEAST, _LEAST
    for i in range(delta.size):
        d = expert[i] - against[i] if (expert[i] > lowest) & (against[i] > lowest) else _ZERO
        delta[i] = d
        key = ordered(d)
        delta_key = max(delta_key, key)
        centre_key = max(centre_key, key if large[i] == top else _LEAST)
    return unordered(centre_key), unordered(delta_key)


@jit
def joint_tops(expert: Any, against: Any) -> tuple[float, float]:
    """The largest logit of an expert, and of what it is compared with, among the tokens that neither masks; or -inf."""
    lowest = np.float32(-np.inf)
    expert_key, against_key = _MINUS_INF, _MINUS_INF
    for i in range(expert.size):
        both = (expert[i] > lowest) & (against[i] > lowest)
        expert_key = max(expert_key, ordered(expert[i]) if both else _LEAST)
        against_key = max(against_key, ordered(against[i]) if both else _LEAST)
    return unordered(expert_key), unordered(against_key)


@jit
def targets(expert: Any, against: Any, expert_top: float, against_top: float) -> tuple[float, float, float]:
    """a = KL(Q_t || R_t), b = KL(R_t || Q_t) and the entropy of Q_t over the tokens that neither masks."""
    q_top, r_top, lowest = np.float32(expert_top), np.float32(against_top), np.float32(-np.inf)
    mass_q, mass_r, mean_q, mean_r, level_q = 0.0, 0.0, 0.0, 0.0, 0.0
    for start in range(0, expert.size, BLOCK):
        es, rs = expert[start : start + BLOCK], against[start : start + BLOCK]
        s0, s1, s2, s3, s4 = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
        for i in range(es.size):
            both = (es[i] > lowest) & (rs[i] > lowest)
            e, r = (es[i] - q_top if both else _ZERO), (rs[i] - r_top if both else _ZERO)
            q_t, r_t = (exp(e) if both else _ZERO), (exp(r) if both else _ZERO)
            s0 += q_t
            s1 += r_t
            s2 += q_t * (e - r)
            s3 += r_t * (e - r)
            s4 += q_t * e
        mass_q += s0
        mass_r += s1
        mean_q += s2
        mean_r += s3
        level_q += s4
    if mass_q == 0.0:
        return 0.0, 0.0, 0.0
    shift = np.log(mass_q / mass_r)
    entropy = max(np.log(mass_q) - level_q / mass_q, 0.0)
    return max(mean_q / mass_q - shift, 0.0), max(shift - mean_r / mass_r, 0.0), entropy


@jit
def highest(line: Any, x: float) -> float:
    """The largest log weight of a `Line` at x: max_v of large_v - top + x (delta_v - centre)."""
    large, delta, top, middle, slope = (
        line.large,
        line.delta,
        np.float32(line.top),
        np.float32(line.centre),
        np.float32(x),
    )
    key = _LEAST
    for i in range(delta.size):
        key = max(key, ordered(large[i] - top + slope * (delta[i] - middle)))
    return unordered(key)


@jit
def moments(line: Any, x: float, shift: float, sums: Any) -> None:
    """sums[0:4] = S_0 .. S_3 of a `Line` at x, times exp(-shift); `shift` keeps the weights inside float32."""
    large, delta = line.large, line.delta
    offset, middle, slope = np.float32(line.top + shift), np.float32(line.centre), np.float32(x)
    sums[:4] = 0.0
    for start in range(0, delta.size, BLOCK):
        ls, ds = large[start : start + BLOCK], delta[start : start + BLOCK]
        s0, s1, s2, s3 = _ZERO, _ZERO, _ZERO, _ZERO
        for i in range(ds.size):
            d = ds[i] - middle
            w = exp(ls[i] - offset + slope * d)
            s0 += w
            wd = w * d
            s1 += wd
            wdd = wd * d
            s2 += wdd
            s3 += wdd * d
        sums[0] += s0
        sums[1] += s1
        sums[2] += s2
        sums[3] += s3


@jit
def sweep(line: Any, first: float, step: float, table: Any) -> None:
    """table[k, 0:3] = S_0, S_1, S_2 of a `Line` at first + k step for every k, in one pass over the vocabulary.

    exp(step d) is taken once per token; each further point is one multiplication. Overflow shows as inf or NaN.
    Three points share one loop, which saves loads; so the table has a multiple of three rows.
    """
    weights, delta, tilted, factor = line.weights, line.delta, line.blocks[0], line.blocks[1]
    middle, start_at, by = np.float32(line.centre), np.float32(first), np.float32(step)
    table[:, :3] = 0.0
    for start in range(0, delta.size, BLOCK):
        ws, ds = weights[start : start + BLOCK], delta[start : start + BLOCK]
        length = ds.size
        for i in range(length):
            factor[i] = exp(by * (ds[i] - middle))
            tilted[i] = ws[i]
        if first > 0.0:
            for i in range(length):
                tilted[i] *= exp(start_at * (ds[i] - middle))
        for k in range(0, table.shape[0], 3):
            a0, a1, a2 = _ZERO, _ZERO, _ZERO
            b0, b1, b2 = _ZERO, _ZERO, _ZERO
            c0, c1, c2 = _ZERO, _ZERO, _ZERO
            for i in range(length):
                d, u, w = ds[i] - middle, factor[i], tilted[i]
                wd = w * d
                a0 += w
                a1 += wd
                a2 += wd * d
                w = w * u
                wd = w * d
                b0 += w
                b1 += wd
                b2 += wd * d
                w = w * u
                wd = w * d
                c0 += w
                c1 += wd
                c2 += wd * d
                tilted[i] = w * u
            table[k, 0] += a0
            table[k, 1] += a1
            table[k, 2] += a2
            table[k + 1, 0] += b0
            table[k + 1, 1] += b1
            table[k + 1, 2] += b2
            table[k + 2, 0] += c0
            table[k + 2, 1] += c1
            table[k + 2, 2] += c2


@jit
def add(row: Any, delta: Any, weight: float) -> None:
    """row += weight * delta, [n]."""
    a = np.float32(weight)
    for i in range(delta.size):
        row[i] += a * delta[i]
