"""From the sums of a row's chunks to those of the row.

A chunk leaves a line of `WIDTH` float32 in a buffer [B, T, chunks, WIDTH]; the program that arrives last reads them
all, in their order, so a result does not depend on who was last.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: N803  (Triton writes compile-time arguments in capitals)

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fusion_kernels.triton.sums import INF

WIDTH = tl.constexpr(64)
# A line: three times 16 for the sums of a sweep or of one point, then these.
S1 = tl.constexpr(16)
S2 = tl.constexpr(32)
TOPS = tl.constexpr(48)  # in the order of `Tops`
MASSES = tl.constexpr(54)  # in the order of `Masses`
SWEPT = tl.constexpr(59)  # 1 where the chunk's sweep can be used


class Facts(NamedTuple):
    """What is known of a row and an expert before the weights."""

    a: Any  # KL(Q_t || R_t)
    b: Any  # KL(R_t || Q_t)
    entropy: Any  # of Q_t
    top: Any  # the largest of large's common logits
    centre: Any  # delta there
    reach: Any  # how far above it the largest delta is
    broken: Any  # as in `Tops`


@triton.jit
def write_first_look(line, tops, masses):
    """Write a chunk's `Tops` and `Masses` to its line."""
    for i in tl.static_range(5):
        tl.store(line + TOPS + i, tops[i])
    tl.store(line + TOPS + 5, tops.broken.to(tl.float32))
    for i in tl.static_range(5):
        tl.store(line + MASSES + i, masses[i])


@triton.jit
def write_sweep(line, swept, s0, s1, s2):
    """Write the sums of a chunk's sweep to its line, and whether they can be used."""
    index = tl.arange(0, 16)
    tl.store(line + index, s0)
    tl.store(line + S1 + index, s1)
    tl.store(line + S2 + index, s2)
    tl.store(line + SWEPT, swept)


@triton.jit
def column(lines, chunks, column, other, SPLITS: tl.constexpr):
    """[SPLITS]: one figure of every chunk; `other` past the last chunk. Never from a cache that may be stale."""
    index = tl.arange(0, SPLITS)
    return tl.load(lines + index * WIDTH + column, mask=index < chunks, other=other, cache_modifier=".cg")


@triton.jit
def is_sound(lines, chunks, SPLITS: tl.constexpr):
    """Whether no chunk was found broken, whatever the member."""
    return tl.max(column(lines, chunks, TOPS + 5, 0.0, SPLITS), 0) == 0


@triton.jit
def merge_first_look(lines, chunks, SPLITS: tl.constexpr):
    """The `Facts` of a row and an expert."""
    tops, centres = (
        column(lines, chunks, TOPS, -INF, SPLITS),
        column(lines, chunks, TOPS + 1, -INF, SPLITS),
    )
    deltas = column(lines, chunks, TOPS + 2, -INF, SPLITS)
    against_tops, expert_tops = (
        column(lines, chunks, TOPS + 3, -INF, SPLITS),
        column(lines, chunks, TOPS + 4, -INF, SPLITS),
    )
    flags = column(lines, chunks, TOPS + 5, 0.0, SPLITS).to(tl.int32)
    broken = tl.zeros([], tl.int32)
    for bit in tl.static_range(3):
        broken += tl.max(flags & (1 << bit), 0)
    top = tl.max(tops, 0)
    centre = tl.max(tl.where(tops == top, centres, -INF), 0)
    # Every chunk's sums are moved to the row's tops; those of a chunk without a token that both members have are 0.
    against_top, expert_top = tl.max(against_tops, 0), tl.max(expert_tops, 0)
    seen = against_tops > -INF
    rise_r, rise_q = tl.where(seen, against_tops - against_top, 0.0), tl.where(seen, expert_tops - expert_top, 0.0)
    scale_r, scale_q = tl.exp(rise_r), tl.exp(rise_q)
    r_t, q_t = column(lines, chunks, MASSES, 0.0, SPLITS), column(lines, chunks, MASSES + 1, 0.0, SPLITS)
    against_sum, expert_sum = tl.sum(r_t * scale_r, 0), tl.sum(q_t * scale_q, 0)
    moved = rise_q - rise_r  # of the offset
    against_mean = tl.sum((column(lines, chunks, MASSES + 2, 0.0, SPLITS) + moved * r_t) * scale_r, 0)
    expert_mean = tl.sum((column(lines, chunks, MASSES + 3, 0.0, SPLITS) + moved * q_t) * scale_q, 0)
    level = tl.sum((column(lines, chunks, MASSES + 4, 0.0, SPLITS) + rise_q * q_t) * scale_q, 0)
    some = against_sum > 0
    against_sum, expert_sum = tl.where(some, against_sum, 1.0), tl.where(some, expert_sum, 1.0)
    # log of the ratio of both normalisers, relative to the offset.
    shift = tl.where(some, tl.log(expert_sum / against_sum), 0.0)
    return Facts(
        tl.maximum(expert_mean / expert_sum - shift, 0.0),
        tl.maximum(shift - against_mean / against_sum, 0.0),
        tl.maximum(tl.log(expert_sum) - level / expert_sum, 0.0),
        top,
        centre,
        tl.max(deltas, 0) - centre,
        broken,
    )


@triton.jit
def _table(lines, chunks, start, SPLITS: tl.constexpr):
    """[SPLITS, 16]: a sum of every chunk's sweep; 0 past the last chunk."""
    rows, columns = tl.arange(0, SPLITS)[:, None], tl.arange(0, 16)[None, :]
    return tl.load(lines + rows * WIDTH + start + columns, mask=rows < chunks, other=0.0, cache_modifier=".cg")


@triton.jit
def merge_first_sweep(lines, chunks, top, centre, step, SPLITS: tl.constexpr):
    """[16] S_0, S_1, S_2 of a sweep from 0 whose chunks had tops and centres of their own; whether all can be used."""
    tops = column(lines, chunks, TOPS, -INF, SPLITS)
    centres = column(lines, chunks, TOPS + 1, 0.0, SPLITS)
    swept = tl.min(column(lines, chunks, SWEPT, 1.0, SPLITS), 0)
    moved = tl.where(tops > -INF, centres - centre, 0.0)[:, None]
    x = step * tl.arange(0, 16).to(tl.float32)
    scale = tl.exp((tops - top)[:, None] + x[None, :] * moved)
    s0, s1 = _table(lines, chunks, 0, SPLITS), _table(lines, chunks, S1, SPLITS)
    s2 = _table(lines, chunks, S2, SPLITS)
    return (
        tl.sum(scale * s0, 0),
        tl.sum(scale * (s1 + moved * s0), 0),
        tl.sum(scale * (s2 + moved * (2 * s1 + moved * s0)), 0),
        swept > 0,
    )


@triton.jit
def merge_sweep(lines, chunks, SPLITS: tl.constexpr):
    """[16] S_0, S_1, S_2 of a sweep whose chunks had the row's top and centre."""
    return (
        tl.sum(_table(lines, chunks, 0, SPLITS), 0),
        tl.sum(_table(lines, chunks, S1, SPLITS), 0),
        tl.sum(_table(lines, chunks, S2, SPLITS), 0),
    )


@triton.jit
def write_moments(line, moments):
    """Write the moments at one point to a chunk's line."""
    for i in tl.static_range(4):
        tl.store(line + i, moments[i])


@triton.jit
def merge_moments(lines, chunks, SPLITS: tl.constexpr):
    """S_0 .. S_3 at one point."""
    return (
        tl.sum(column(lines, chunks, 0, 0.0, SPLITS), 0),
        tl.sum(column(lines, chunks, 1, 0.0, SPLITS), 0),
        tl.sum(column(lines, chunks, 2, 0.0, SPLITS), 0),
        tl.sum(column(lines, chunks, 3, 0.0, SPLITS), 0),
    )


@triton.jit
def arrive(counter, expected):
    """Whether this program is the last of `expected` to come here; the others' stores are then there to read."""
    # The stores of all threads come first; the counter's own order (acquire and release) does the rest.
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel") == expected - 1
    if last:
        tl.store(counter, 0)  # for the next launch
    return last
