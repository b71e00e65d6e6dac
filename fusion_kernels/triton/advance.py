"""The kernels that take searches on: by a pass of all programs of a row, and by one program to the end."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: N803  (Triton writes compile-time arguments in capitals)

import triton
import triton.language as tl

from fusion_kernels.triton import merging, search, sums
from fusion_kernels.triton.place import ALONE, ANY_SIZE, NONE, STATIC, at_row, place_of, row_of
from fusion_kernels.triton.state import DONE, NEWTON, STATE, load_state, store_state
from fusion_kernels.triton.sums import Line, at


@triton.jit
def _is_searching(place, notes, t):
    weighting = tl.load(notes + 2 * place.index)
    searching = (weighting != NONE) & (weighting != STATIC) & (weighting != ALONE)
    return searching & (at(place.used, t) > 0)


@triton.jit(**ANY_SIZE)
def advance_kernel(
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
    kind,
    use,
    alpha_max,
    number,
    common,
    chunks,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Programs (row and chunk, expert): one pass of each search that is not done, all chunks of a row at once."""
    place, t = place_of(kind, use, alpha_max, number, chunks, COLUMNS), tl.program_id(1)
    index, which = place.index, place.index * number + t
    if _is_searching(place, notes, t):
        states += which * STATE
        state = load_state(states)
        if (state.next.phase != DONE) & (state.tame > 0):
            row = at_row(large, index, large_stride, ALIGNED)
            against_t = row_of(against, against_strides, t, index, ALIGNED)
            expert = row_of(experts, expert_strides, t, index, ALIGNED)
            first = place.chunk * CHUNK
            stop = tl.minimum(first + CHUNK, common)
            line = Line(row, against_t, expert, first, stop, state.top, state.centre)
            lines += which * chunks * merging.WIDTH
            mine = lines + place.chunk * merging.WIDTH
            newton = state.next.phase == NEWTON
            if newton:
                merging.write_moments(mine, sums.moments(line, state.next.at, 0.0, WIDE))
            else:
                s0, s1, s2 = sums.sweep(line, state.next.at, state.next.step, BLOCK)
                merging.write_sweep(mine, 1.0, s0, s1, s2)
            if merging.arrive(counters + index * (1 + number) + 1 + t, chunks):
                if newton:
                    m0, m1, m2, m3 = merging.merge_moments(lines, chunks, SPLITS)
                    state = search.after_newton(state, m0, m1, m2, m3, 0.0)
                else:
                    s0, s1, s2 = merging.merge_sweep(lines, chunks, SPLITS)
                    value, mean, spread = sums.cumulants(s0, s1, s2, sums.POINTS)
                    state = search.after_points(state, value, mean, spread, sums.POINTS)
                store_state(states, state)


@triton.jit(**ANY_SIZE)
def finish_kernel(
    states,  # as in `scan_kernel`
    notes,
    large,
    against,
    experts,
    large_stride,
    against_strides,
    expert_strides,
    kind,
    use,
    alpha_max,
    number,
    common,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Programs (row, expert): what is left of a search, alone, with passes over the whole row."""
    place, t = place_of(kind, use, alpha_max, number, 1, COLUMNS), tl.program_id(1)
    if _is_searching(place, notes, t):
        states += (place.index * number + t) * STATE
        state = load_state(states)
        if state.next.phase != DONE:
            row, zero = at_row(large, place.index, large_stride, ALIGNED), tl.full((), 0, tl.int32)
            against_t = row_of(against, against_strides, t, place.index, ALIGNED)
            expert = row_of(experts, expert_strides, t, place.index, ALIGNED)
            line = Line(row, against_t, expert, zero, common, state.top, state.centre)
            while state.next.phase != DONE:
                if state.next.phase == NEWTON:
                    shift = tl.full((), 0.0, tl.float32)
                    if state.tame == 0:
                        shift = sums.highest(line, state.next.at, BLOCK)
                    m0, m1, m2, m3 = sums.moments(line, state.next.at, shift, BLOCK)
                    state = search.after_newton(state, m0, m1, m2, m3, shift)
                else:
                    if state.tame > 0:
                        s0, s1, s2 = sums.sweep(line, state.next.at, state.next.step, BLOCK)
                        value, mean, spread = sums.cumulants(s0, s1, s2, sums.POINTS)
                    else:
                        value, mean, spread = sums.wild_sweep(line, state.next.at, state.next.step, BLOCK)
                    state = search.after_points(state, value, mean, spread, sums.POINTS)
            store_state(states, state)
