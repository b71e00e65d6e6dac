"""The first kernel: one look at all members, the targets, and the first sweep of every search."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: N803  (Triton writes compile-time arguments in capitals)

import triton
import triton.language as tl

from fusion_kernels.batch import broken_against, broken_expert
from fusion_kernels.triton import merging, search, sums
from fusion_kernels.triton.place import (
    ALONE,
    ANY_SIZE,
    KL_GRID,
    KL_SAFE,
    NONE,
    STATIC,
    at_row,
    length_of,
    place_of,
    row_of,
    store_pair,
)
from fusion_kernels.triton.state import DONE, STATE, store_state
from fusion_kernels.triton.sums import AGAINST, INF, LARGE, Line, at

# Triton compiles no annotated function; from these the numbers go up and down with t.
BROKEN_EXPERT = tl.constexpr(broken_expert(0))
BROKEN_AGAINST = tl.constexpr(broken_against(0))


@triton.jit
def _look(
    place,
    large,
    against,
    expert,
    out,
    common,
    vocabulary,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Leave what a chunk tells of one expert, and its part of the first sweep, for whoever needs it."""
    first = place.chunk * CHUNK
    stop, end = tl.minimum(first + CHUNK, common), tl.minimum(first + CHUNK, vocabulary)
    zero = tl.full((), 0.0, tl.float32)
    line = Line(large, against, expert, first, stop, zero, zero)
    tops = sums.tops_of(line, WIDE)
    # Large's own ids count too.
    past = sums.broken(large, tl.maximum(first, common), end, BLOCK) * LARGE
    tops = sums.Tops(tops.large, tops.centre, tops.delta, tops.against, tops.expert, tops.broken | past)
    shift = tl.where(tops.large > -INF, tops.large, 0.0)
    line = Line(large, against, expert, first, stop, shift, tops.centre)
    step, furthest = search.first_points(place.limit, place.weighting == KL_GRID)
    masses, s0, s1, s2 = sums.first_look(line, tops, step, BLOCK)
    merging.write_first_look(out, tops, masses)
    tame = furthest * (tops.delta - tops.centre) <= search.TAME
    merging.write_sweep(out, tame.to(tl.float32), s0, s1, s2)


@triton.jit
def _begin(place, lines, states, notes, kl_target, number, chunks, SPLITS: tl.constexpr):
    """From all chunks' first looks: the row's targets, and the `State` of each search. Return what is broken."""
    count = tl.sum(place.used, 0)
    zero = tl.full((), 0.0, tl.float32)
    a, b, top = zero, zero, zero - INF
    bad, bad_large = tl.zeros([], tl.int32), tl.zeros([], tl.int32)
    for t in tl.range(0, number):
        if at(place.used, t) > 0:
            facts = merging.merge_first_look(lines + t * chunks * merging.WIDTH, chunks, SPLITS)
            a += facts.a / count
            b += facts.b / count
            top = facts.top
            bad_large |= facts.broken & LARGE
            found = tl.where(facts.broken > 0, BROKEN_EXPERT + t, 0)
            found = tl.where(facts.broken & AGAINST > 0, BROKEN_AGAINST - t, found)
            bad = tl.where(bad == 0, found, bad)
    whole = (bad == 0) & (bad_large == 0)
    store_pair(notes, tl.where(whole, place.weighting, NONE).to(tl.float32), top)
    store_pair(kl_target, tl.where(whole, a, 0.0), tl.where(whole, b, 0.0))
    if whole & (place.weighting != STATIC):
        for t in tl.range(0, number):
            if at(place.used, t) > 0:
                mine = lines + t * chunks * merging.WIDTH
                state = _begin_search(place, mine, a, b, chunks, SPLITS)
                store_state(states + t * STATE, state)
    return tl.where(bad_large > 0, 0, bad)


@triton.jit
def _begin_search(place, lines, a, b, chunks, SPLITS: tl.constexpr):
    """The `State` of one expert's search, after its first sweep if that could be used."""
    facts = merging.merge_first_look(lines, chunks, SPLITS)
    safe, grid = place.weighting == KL_SAFE, place.weighting == KL_GRID
    own, own_b = tl.where(safe, facts.a, a), tl.where(safe, facts.b, b)
    share = tl.where(facts.a > 0, facts.a / tl.maximum(facts.a + facts.entropy, 1e-30), 0.0)
    state = search.started(facts, own, own_b, place.limit, grid, tl.where(safe, tl.sqrt(share), 1.0))
    lost = state.next.phase != DONE
    if lost & (state.tame > 0):
        step = state.next.step
        s0, s1, s2, swept = merging.merge_first_sweep(lines, chunks, facts.top, facts.centre, step, SPLITS)
        if swept:
            value, mean, spread = sums.cumulants(s0, s1, s2, sums.FIRST_POINTS)
            state = search.after_points(state, value, mean, spread, sums.FIRST_POINTS)
        lost = swept == 0
    if lost:
        state = search.again(state)
    return state


@triton.jit(**ANY_SIZE)
def scan_kernel(
    lines,  # [B, T, chunks, WIDTH] float32, scratch
    states,  # [B, T, STATE] float32, out
    notes,  # [B, 2] float32, out: the weighting that is left of the row's, and the largest of large's common logits
    counters,  # [B, 1 + T] int32, 0 before and after
    kl_target,  # [B, 2] float32, out
    broken_member,  # [B] int8, out
    large,  # [B, V] any float
    against,  # COLUMNS pointers to [B, V_a] of one float type, of which T are meant
    experts,  # likewise
    large_stride,  # elements per row
    against_strides,  # COLUMNS of them, times SCALE
    expert_strides,  # likewise
    lengths,  # COLUMNS: V_t, times SCALE
    kind,  # [B] int8
    use,  # [B, T] int8
    alpha_max,  # [B] float32
    number,  # T
    vocabulary,  # V
    common,  # V_c
    chunks,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,  # every row of every member starts at a multiple of 16 bytes
    CHUNK: tl.constexpr,  # ids of a program
    BLOCK: tl.constexpr,  # ids per step of a program where it sweeps
    WIDE: tl.constexpr,  # ids per step where it waits for memory: more are under way at once
    SPLITS: tl.constexpr,  # `chunks` rounded up to a power of two
):
    """Programs (row and chunk, expert): look at the members; the last of a row begins its searches."""
    place, t = place_of(kind, use, alpha_max, number, chunks, COLUMNS), tl.program_id(1)
    index, count, first = place.index, tl.sum(place.used, 0), tl.argmax(place.used, 0)
    alone = place.weighting == ALONE
    notes, kl_target = notes + 2 * index, kl_target + 2 * index
    lines += index * number * chunks * merging.WIDTH
    if (place.weighting == NONE) | (count == 0):
        if (place.chunk == 0) & (t == 0):
            store_pair(notes, 0.0 + NONE, 0.0)
            store_pair(kl_target, 0.0, 0.0)
            tl.store(broken_member + index, 0)
    elif (at(place.used, t) > 0) & ((alone == 0) | (t == first)):
        expert = row_of(experts, expert_strides, t, index, ALIGNED)
        mine = lines + (t * chunks + place.chunk) * merging.WIDTH
        if alone:
            begin, length = place.chunk * CHUNK, tl.minimum(length_of(lengths, t), vocabulary)
            flag = sums.broken(expert, begin, tl.minimum(begin + CHUNK, length), BLOCK)
            tl.store(mine + merging.TOPS + 5, flag.to(tl.float32))
        else:
            row = at_row(large, index, large_stride, ALIGNED)
            against_t = row_of(against, against_strides, t, index, ALIGNED)
            _look(place, row, against_t, expert, mine, common, vocabulary, CHUNK, BLOCK, WIDE)
        if merging.arrive(counters + index * (1 + number), chunks * tl.where(alone, 1, count)):
            if alone:
                sound = merging.is_sound(lines + t * chunks * merging.WIDTH, chunks, SPLITS)
                store_pair(notes, tl.where(sound, ALONE, NONE).to(tl.float32), 0.0)
                store_pair(kl_target, 0.0, 0.0)
                tl.store(broken_member + index, tl.where(sound, 0, BROKEN_EXPERT + first).to(tl.int8))
            else:
                states += index * number * STATE
                bad = _begin(place, lines, states, notes, kl_target, number, chunks, SPLITS)
                tl.store(broken_member + index, bad.to(tl.int8))
