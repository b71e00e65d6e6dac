"""Where a program is, what its row asks for, and where the row's logits are."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: N803  (Triton writes compile-time arguments in capitals)

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fusion_kernels.weighting import Weighting

NONE = tl.constexpr(int(Weighting.NONE))
STATIC = tl.constexpr(int(Weighting.STATIC))
KL_GRID = tl.constexpr(int(Weighting.KL_GRID))
KL_SAFE = tl.constexpr(int(Weighting.KL_SAFE))
ALONE = tl.constexpr(int(Weighting.ALONE))

# A kernel is compiled once for all sizes and places of its arguments: what it may take for granted of them, wide loads
# for instance, is in its compile-time arguments.
ANY_SIZE = {
    "do_not_specialize": ["number", "vocabulary", "common", "chunks", "large_stride"],
    "do_not_specialize_on_alignment": ["large", "against", "experts", "kind", "use", "alpha", "alpha_max"],
}

# Triton heeds that for single arguments alone, and looks into tuples: multiples of 16 are all one to it.
SCALE = tl.constexpr(16)


class Place(NamedTuple):
    """Where a program is, and what its row asks for."""

    index: Any  # of the row, int64
    chunk: Any
    used: Any  # [COLUMNS] int32: 1 where the row uses an expert
    weighting: Any
    limit: Any  # the largest weight


class Members(NamedTuple):
    """A row of each member."""

    large: Any
    against: Any  # COLUMNS pointers; those past T are never read
    experts: Any  # likewise


@triton.jit
def place_of(kind, use, alpha_max, number, chunks, COLUMNS: tl.constexpr):
    """The `Place` of a program whose first number counts rows and chunks."""
    index = (tl.program_id(0) // chunks).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    used = tl.load(use + index * number + columns, mask=columns < number, other=0).to(tl.int32)
    limit = tl.maximum(tl.load(alpha_max + index), 0.0)
    return Place(index, tl.program_id(0) % chunks, used, tl.load(kind + index), limit)


@triton.jit
def at_row(member, index, stride, ALIGNED: tl.constexpr):
    """The row of a matrix."""
    row = member + index * stride
    if ALIGNED:
        row = tl.multiple_of(row, 16)
    return row


@triton.jit
def rows_at(matrices, strides, index, ALIGNED: tl.constexpr):
    """A row of each of several matrices."""
    rows = ()
    for t in tl.static_range(len(matrices)):
        rows = rows + (at_row(matrices[t], index, strides[t] // SCALE, ALIGNED),)  # noqa: RUF005
    return rows


@triton.jit
def members_at(large, against, experts, large_stride, against_strides, expert_strides, index, ALIGNED: tl.constexpr):
    """The `Members` at a row."""
    return Members(
        at_row(large, index, large_stride, ALIGNED),
        rows_at(against, against_strides, index, ALIGNED),
        rows_at(experts, expert_strides, index, ALIGNED),
    )


@triton.jit
def one_of(rows, t, ALIGNED: tl.constexpr):
    """The t-th row, chosen at run time: unrolled over the experts, the kernel would be as many times as long."""
    address = rows[0].to(tl.int64)
    for i in tl.static_range(1, len(rows)):
        address = tl.where(t == i, rows[i].to(tl.int64), address)
    row = address.to(tl.pointer_type(rows[0].dtype.element_ty))
    if ALIGNED:
        row = tl.multiple_of(row, 16)
    return row


@triton.jit
def length_of(lengths, t):
    """V_t, chosen at run time."""
    length = lengths[0]
    for i in tl.static_range(1, len(lengths)):
        length = tl.where(t == i, lengths[i], length)
    return length // SCALE


@triton.jit
def store_pair(place, one, other):
    """Write two numbers."""
    tl.store(place, one)
    tl.store(place + 1, other)
