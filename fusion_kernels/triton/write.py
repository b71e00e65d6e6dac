"""The last kernel: the weights, the fused logits, and how far they moved."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: N803  (Triton writes compile-time arguments in capitals)

import triton
import triton.language as tl

from fusion_kernels import search as shared
from fusion_kernels.triton import merging, moving, sums
from fusion_kernels.triton.place import (
    ALONE,
    ANY_SIZE,
    KL_SAFE,
    NONE,
    SCALE,
    STATIC,
    Members,
    at_row,
    length_of,
    place_of,
    row_of,
    store_pair,
)
from fusion_kernels.triton.state import STATE, load_best, load_trust
from fusion_kernels.triton.sums import INF, at

LEAD, LEAD_SHARE = tl.constexpr(shared.LEAD), tl.constexpr(shared.LEAD_SHARE)


@triton.jit
def _weights(place, states, alpha, weighting, number, COLUMNS: tl.constexpr):
    """[COLUMNS] weights of a row, and f and g where its one search knows them."""
    columns, zero = tl.arange(0, COLUMNS), tl.full((), 0.0, tl.float32)
    weights, f, g, least = tl.zeros([COLUMNS], tl.float32), zero, zero, zero + INF
    if weighting == STATIC:
        mask = (columns < number) & (place.used > 0)
        weights = tl.load(alpha + place.index * number + columns, mask=mask, other=0.0)
    elif weighting != NONE:
        for t in tl.range(0, number):
            if at(place.used, t) > 0:
                state = states + (place.index * number + t) * STATE
                best = load_best(state)
                if weighting == KL_SAFE:
                    weights = tl.where(columns == t, best.x * load_trust(state), weights)
                elif best.loss < least * (1 - LEAD_SHARE) - LEAD:
                    least = best.loss
                    weights = tl.where(columns == t, best.x, 0.0)
                    f, g = best.f, best.g
    return weights, f, g


@triton.jit
def _fused(members, weights, ids, common, end, ALIGNED: tl.constexpr, MASKED: tl.constexpr):
    """large + sum_t alpha_t delta_t at `ids`."""
    fused = sums.load(members.large, ids, end, MASKED)
    for t in tl.static_range(len(members.experts)):
        if weights[t] != 0:
            against = at_row(members.against[t], members.index, members.against_strides[t] // SCALE, ALIGNED)
            expert = at_row(members.experts[t], members.index, members.expert_strides[t] // SCALE, ALIGNED)
            delta = sums.delta_of(sums.load(against, ids, common, MASKED), sums.load(expert, ids, common, MASKED))
            fused = tl.fma(delta, weights[t], fused)
    return fused


@triton.jit
def _write(out, members, weights, first, common, end, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Write a chunk's fused logits; return the largest of them among the common ids."""
    each = ()
    for t in tl.static_range(len(members.experts)):
        each = each + (at(weights, t),)  # noqa: RUF005
    top = tl.full([BLOCK], -INF, tl.float32)
    middle = sums.whole_blocks(first, tl.minimum(common, end), BLOCK)
    # Each slot's addresses are made where they are needed: kept from step to step, they would take all registers.
    for start in tl.range(first, middle, BLOCK, disable_licm=True):
        ids = start + tl.arange(0, BLOCK)
        fused = _fused(members, each, ids, common, end, ALIGNED, False)
        tl.store(out + ids, fused)
        top = tl.maximum(top, fused)
    for start in tl.range(middle, end, BLOCK, disable_licm=True):
        ids = start + tl.arange(0, BLOCK)
        fused = _fused(members, each, ids, common, end, ALIGNED, True)
        tl.store(out + ids, fused, mask=ids < end)
        top = tl.maximum(top, tl.where(ids < common, fused, -INF))
    return tl.max(top, 0)


@triton.jit
def _copy(out, expert, first, length, end, BLOCK: tl.constexpr):
    """Write a chunk of an expert's own logits, -inf past its length."""
    for start in tl.range(first, end, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        tl.store(out + ids, sums.load(expert, ids, length, True), mask=ids < end)


@triton.jit
def _measure(out, large, first, stop, top, fused_top, BLOCK: tl.constexpr):
    """The `Move` of a chunk that was just written."""
    tl.debug_barrier()
    return moving.move_of(out, large, first, stop, top, fused_top, BLOCK)


@triton.jit
def _conclude(move, lines, chunk, counter, chunks, SPLITS: tl.constexpr):
    """(f, g, whether they are known): the last program of a row knows them, from what all of them found."""
    moving.write_move(lines + chunk * merging.WIDTH, move)
    known = merging.arrive(counter, chunks)
    f, g = tl.full((), 0.0, tl.float32), tl.full((), 0.0, tl.float32)
    if known:
        f, g = moving.merge_move(lines, chunks, SPLITS)
    return f, g, known


@triton.jit(**ANY_SIZE)
def write_kernel(
    logits,  # [B, V] float32, out
    out_alpha,  # [B, T] float32, out
    kl_fused,  # [B, 2] float32, out
    lines,  # as in `scan_kernel`
    states,
    notes,
    counters,
    large,
    against,
    experts,
    large_stride,
    against_strides,
    expert_strides,
    lengths,
    kind,
    use,
    alpha,  # [B, T] float32
    alpha_max,
    number,
    vocabulary,
    common,
    chunks,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    ALIGNED_OUT: tl.constexpr,  # the same of `logits`
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Programs (row and chunk): write the fused logits, and how far they moved."""
    place = place_of(kind, use, alpha_max, number, chunks, COLUMNS)
    index, columns = place.index, tl.arange(0, COLUMNS)
    weighting, top = tl.load(notes + 2 * index), tl.load(notes + 2 * index + 1)
    row = at_row(large, index, large_stride, ALIGNED)
    members = Members(index, row, against, against_strides, experts, expert_strides)
    out = at_row(logits, index, vocabulary, ALIGNED_OUT)
    first = place.chunk * CHUNK
    end, kl_fused = tl.minimum(first + CHUNK, vocabulary), kl_fused + 2 * index
    cells, one = out_alpha + index * number + columns, place.chunk == 0
    if weighting == ALONE:
        t = tl.argmax(place.used, 0)
        _copy(out, row_of(experts, expert_strides, t, index, ALIGNED), first, length_of(lengths, t), end, BLOCK)
        if one:
            tl.store(cells, tl.where(columns == t, 1.0, 0.0), mask=columns < number)
            store_pair(kl_fused, 0.0, 0.0)
    else:
        weights, f, g = _weights(place, states, alpha, weighting, number, COLUMNS)
        if one:
            tl.store(cells, weights, mask=columns < number)
        fused_top = _write(out, members, weights, first, common, end, ALIGNED, WIDE)
        # One search knows how far it goes; fixed weights, and those of several searches, have to be measured.
        known = one
        if ((weighting == STATIC) | (weighting == KL_SAFE)) & (top > -INF):
            lines += index * number * chunks * merging.WIDTH
            move = _measure(out, row, first, tl.minimum(end, common), top, fused_top, BLOCK)
            f, g, known = _conclude(move, lines, place.chunk, counters + index * (1 + number), chunks, SPLITS)
        if known:
            store_pair(kl_fused, f, g)
