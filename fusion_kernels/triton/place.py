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
    """Where the logits of a row are."""

    index: Any  # of the row
    large: Any  # pointer to the row
    against: Any  # COLUMNS pointers to matrices; those past T are never read
    against_strides: Any  # times SCALE
    experts: Any  # as `against`
    expert_strides: Any


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
def row_of(matrices, strides, t, index, ALIGNED: tl.constexpr):
    """A row of the t-th matrix, chosen at run time: unrolled over experts, a kernel would be as many times as long."""
    address, stride = matrices[0].to(tl.int64), strides[0]
    for i in tl.static_range(1, len(matrices)):
        address = tl.where(t == i, matrices[i].to(tl.int64), address)
        stride = tl.where(t == i, strides[i], stride)
    matrix = address.to(tl.pointer_type(matrices[0].dtype.element_ty))
    return at_row(matrix, index, stride // SCALE, ALIGNED)


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
