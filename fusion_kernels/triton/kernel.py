"""The fusion on a GPU: one Triton kernel, one program per row.

A program fills its multiprocessor, and each of its passes reads the row again: 3 x 32,000 bfloat16 logits are 192 KB,
which the 256 KB of L1 cache and shared memory of a Hopper multiprocessor hold from the first pass on; longer rows come
from the L2 cache. Sums are in float32.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: N803  (Triton writes compile-time arguments in capitals)

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fusion_kernels.batch import BASE, FIRST_EXPERT
from fusion_kernels.triton.moments import INF, Line, at, broken, centred, delta_of, finish, load, no_sums, scan
from fusion_kernels.triton.search import Best, search, search_on_grid
from fusion_kernels.weighting import Weighting

NONE = tl.constexpr(int(Weighting.NONE))
STATIC = tl.constexpr(int(Weighting.STATIC))
KL_GRID = tl.constexpr(int(Weighting.KL_GRID))
KL_SAFE = tl.constexpr(int(Weighting.KL_SAFE))
ALONE = tl.constexpr(int(Weighting.ALONE))
BROKEN_BASE = tl.constexpr(BASE)
BROKEN_EXPERT = tl.constexpr(FIRST_EXPERT)


class Row(NamedTuple):
    """The program's row of each member."""

    large: Any  # pointer to [V]
    base: Any  # pointer to [V_b]
    experts: Any  # T pointers to [B, V_t], whole matrices
    strides: Any  # 2 + T: elements per row of large, base and experts
    index: Any  # of the row, int64
    used: Any  # [COLUMNS] int32: 1 where the row uses an expert
    vocabulary: Any  # V
    common: Any  # V_c


class Facts(NamedTuple):
    """What is known of a row before its weights; [COLUMNS] float32 for each expert, scalars otherwise."""

    own_a: Any
    own_b: Any
    entropies: Any
    a: Any  # mean of own_a over the used experts
    b: Any
    top: Any  # the largest of large's common logits
    broken: Any  # the broken member as `Fused.broken` numbers it, or 0


class Choice(NamedTuple):
    """A row's weights and f and g there."""

    alpha: Any  # [COLUMNS] float32
    f: Any
    g: Any


@triton.jit
def _expert(row, t, ALIGNED: tl.constexpr):
    """The row of expert t, chosen at run time: unrolled over the experts, the kernel would be T times as long."""
    start = row.experts[0] + row.index * row.strides[2]
    if len(row.experts) > 1:
        address = start.to(tl.int64)
        for i in tl.static_range(1, len(row.experts)):
            address = tl.where(t == i, (row.experts[i] + row.index * row.strides[2 + i]).to(tl.int64), address)
        start = address.to(tl.pointer_type(row.experts[0].dtype.element_ty))
        if ALIGNED:
            start = tl.multiple_of(start, 16)
    return start


@triton.jit
def _is_broken(member, length, BLOCK: tl.constexpr):
    """1 where NaN or +inf is among the first `length` logits of a member's row."""
    bad = tl.full((), 0, tl.int32)
    for start in tl.range(0, length, BLOCK):
        bad |= broken(load(member, start + tl.arange(0, BLOCK), length))
    return bad


@triton.jit
def _copy_expert(out, expert, length, vocabulary, BLOCK: tl.constexpr):
    """Write an expert's own logits, -inf past its length."""
    for start in tl.range(0, vocabulary, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        tl.store(out + ids, load(expert, ids, length), mask=ids < vocabulary)


@triton.jit
def _read(row, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """The `Facts` of a row: one pass over large, base and each used expert."""
    columns, count = tl.arange(0, COLUMNS), tl.sum(row.used, 0)
    zero, none = tl.full((), 0.0, tl.float32), tl.zeros([COLUMNS], tl.float32)
    own_a, own_b, entropies = none, none, none
    a, b, top, bad = zero, zero, zero - INF, tl.full((), 0, tl.int32)
    for t in tl.range(0, len(row.experts)):
        if at(row.used, t) > 0:
            expert = _expert(row, t, ALIGNED)
            sums = no_sums()
            for start in tl.range(0, row.common, BLOCK):
                ids = start + tl.arange(0, BLOCK)
                from_base, from_expert = load(row.base, ids, row.common), load(expert, ids, row.common)
                sums = scan(sums, load(row.large, ids, row.common), from_base, from_expert)
            towards, back, entropy = finish(sums)
            own_a = tl.where(columns == t, towards, own_a)
            own_b = tl.where(columns == t, back, own_b)
            entropies = tl.where(columns == t, entropy, entropies)
            a += towards / count
            b += back / count
            if bad == 0:
                bad = tl.where(sums.bad == 1, t + BROKEN_EXPERT, tl.where(sums.bad > 1, BROKEN_BASE, 0))
            top = sums.top
    return Facts(own_a, own_b, entropies, a, b, top, bad)


@triton.jit
def _choose(row, weighting, limit, facts, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """The `Choice` of a weighting that searches; of `KL_SAFE` without f and g."""
    columns, zero = tl.arange(0, COLUMNS), tl.full((), 0.0, tl.float32)
    alpha, f, g, least = tl.zeros([COLUMNS], tl.float32), zero, zero, zero + INF
    safe = weighting == KL_SAFE
    for t in tl.range(0, len(row.experts)):
        if at(row.used, t) > 0:
            expert = _expert(row, t, ALIGNED)
            line, reach = centred(Line(row.large, row.base, expert, row.common, facts.top, zero), BLOCK)
            a, b = tl.where(safe, at(facts.own_a, t), facts.a), tl.where(safe, at(facts.own_b, t), facts.b)
            best = Best(zero, zero, zero, zero)
            if weighting == KL_GRID:
                best = search_on_grid(line, reach, a, b, limit, BLOCK)
            else:
                best = search(line, reach, a, b, limit, BLOCK)
            if safe:
                share = tl.where(a > 0, a / tl.maximum(a + at(facts.entropies, t), 1e-30), 0.0)
                alpha = tl.where(columns == t, best.x * tl.sqrt(share), alpha)
            elif best.loss < least:
                least = best.loss
                alpha = tl.where(columns == t, best.x, 0.0)
                f, g = best.f, best.g
    return Choice(alpha, f, g)


@triton.jit
def _write(out, row, alpha, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Write large + sum_t alpha_t delta_t."""
    for start in tl.range(0, row.vocabulary, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        fused = load(row.large, ids, row.vocabulary)
        for t in tl.range(0, len(row.experts)):
            weight = at(alpha, t)
            if weight != 0:
                expert = _expert(row, t, ALIGNED)
                fused += weight * delta_of(load(row.base, ids, row.common), load(expert, ids, row.common))
        tl.store(out + ids, fused, mask=ids < row.vocabulary)


@triton.jit
def _measure_move(out, row, top, BLOCK: tl.constexpr):
    """f and g of the fused logits at `out`, for a row whose weights several experts may have."""
    fused_top = tl.full((), -INF, tl.float32)
    for start in tl.range(0, row.common, BLOCK):
        fused_top = tl.maximum(fused_top, tl.max(load(out, start + tl.arange(0, BLOCK), row.common), 0))
    p, fused, p_mean, fused_mean = (tl.zeros([BLOCK], tl.float32),) * 4
    for start in tl.range(0, row.common, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        before, after = load(row.large, ids, row.common) - top, load(out, ids, row.common) - fused_top
        ratio = tl.where(before > -INF, after - before, 0.0)
        p += tl.exp(before)
        fused += tl.exp(after)
        p_mean += tl.exp(before) * ratio
        fused_mean += tl.exp(after) * ratio
    p_sum, fused_sum = tl.sum(p, 0), tl.sum(fused, 0)
    gain = tl.log(fused_sum / p_sum)
    f, g = tl.sum(fused_mean, 0) / fused_sum - gain, gain - tl.sum(p_mean, 0) / p_sum
    return tl.maximum(f, 0.0), tl.maximum(g, 0.0)


@triton.jit
def _fuse_row(out, row, weighting, given, limit, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Write a row's logits, the large model's own where it has nothing to add; its `Facts` and its `Choice`."""
    zero, none = tl.full((), 0.0, tl.float32), tl.zeros([COLUMNS], tl.float32)
    facts = Facts(none, none, none, zero, zero, zero - INF, tl.full((), 0, tl.int32))
    choice, several = Choice(none, zero, zero), tl.full((), 0, tl.int32)
    read = (weighting != NONE) & (tl.sum(row.used, 0) > 0)
    if read:
        read = _is_broken(row.large, row.vocabulary, BLOCK) == 0
    if read:
        facts = _read(row, COLUMNS, ALIGNED, BLOCK)
        if facts.broken > 0:
            facts = Facts(facts.own_a, facts.own_b, facts.entropies, zero, zero, facts.top, facts.broken)
        elif weighting == STATIC:
            choice = Choice(given, zero, zero)
            several += 1
        elif facts.top > -INF:
            choice = _choose(row, weighting, limit, facts, COLUMNS, ALIGNED, BLOCK)
            several += (weighting == KL_SAFE).to(tl.int32)
    _write(out, row, choice.alpha, ALIGNED, BLOCK)
    if (several > 0) & (facts.top > -INF):
        tl.debug_barrier()
        f, g = _measure_move(out, row, facts.top, BLOCK)
        choice = Choice(choice.alpha, f, g)
    return facts.a, facts.b, facts.broken, choice


@triton.jit
def fuse_kernel(
    logits,  # [B, V] float32, out
    out_alpha,  # [B, T] float32, out
    kl_target,  # [B, 2] float32, out
    kl_fused,  # [B, 2] float32, out
    broken_member,  # [B] int8, out
    large,  # [B, V] any float
    base,  # [B, V_b] any float
    experts,  # T pointers to [B, V_t] of one float type
    strides,  # 2 + T: elements per row of large, base and experts
    lengths,  # T: V_t
    kind,  # [B] int8
    use,  # [B, T] int8
    alpha,  # [B, T] float32
    alpha_max,  # [B] float32
    vocabulary,  # V
    common,  # V_c
    COLUMNS: tl.constexpr,  # T rounded up to a power of two
    ALIGNED: tl.constexpr,  # every expert row starts at a multiple of 16 bytes
    BLOCK: tl.constexpr,  # ids per step of a pass
):
    """One row: read what its kind needs, choose the weights, write the fused logits; see `fuse_logits`."""
    index = tl.program_id(0).to(tl.int64)
    number: tl.constexpr = len(experts)
    columns = tl.arange(0, COLUMNS)
    inside, cells = columns < number, index * number + columns
    used = tl.load(use + cells, mask=inside, other=0).to(tl.int32)
    weighting, limit, out = (
        tl.load(kind + index),
        tl.maximum(tl.load(alpha_max + index), 0.0),
        logits + index * vocabulary,
    )
    row = Row(large + index * strides[0], base + index * strides[1], experts, strides, index, used, vocabulary, common)
    zero, bad = tl.full((), 0.0, tl.float32), tl.full((), 0, tl.int32)
    a, b, choice = zero, zero, Choice(tl.zeros([COLUMNS], tl.float32), zero, zero)
    first, copied = tl.argmax(used, 0), 0
    if (weighting == ALONE) & (tl.sum(used, 0) > 0):
        length = 0
        for i in tl.static_range(number):
            length = tl.where(first == i, lengths[i], length)
        expert = _expert(row, first, ALIGNED)
        bad = _is_broken(expert, tl.minimum(length, vocabulary), BLOCK) * (first + BROKEN_EXPERT)
        if bad == 0:
            _copy_expert(out, expert, length, vocabulary, BLOCK)
            choice = Choice(tl.where(columns == first, 1.0, 0.0), zero, zero)
            copied = 1
        else:
            weighting = tl.full((), NONE, tl.int8)
    if copied == 0:
        given = tl.load(alpha + cells, mask=inside & (used > 0), other=0.0)
        a, b, broken_one, choice = _fuse_row(out, row, weighting, given, limit, COLUMNS, ALIGNED, BLOCK)
        bad = tl.maximum(bad, broken_one)
    tl.store(out_alpha + cells, choice.alpha, mask=inside)
    tl.store(kl_target + 2 * index, a)
    tl.store(kl_target + 2 * index + 1, b)
    tl.store(kl_fused + 2 * index, choice.f)
    tl.store(kl_fused + 2 * index + 1, choice.g)
    tl.store(broken_member + index, bad.to(tl.int8))
