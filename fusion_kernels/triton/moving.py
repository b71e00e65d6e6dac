"""How far fused logits moved from the large model's: f = KL(fused || large) and g = KL(large || fused)."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: N803  (Triton writes compile-time arguments in capitals)

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fusion_kernels.triton.merging import column
from fusion_kernels.triton.sums import INF, exp, load


class Move(NamedTuple):
    """The sums of a chunk; p and fused are relative to the row's top and the chunk's fused top."""

    top: Any  # the largest fused logit
    p: Any  # of exp(large - the row's top)
    fused: Any  # of exp(fused - top)
    p_mean: Any  # of p times the difference of the two exponents; the next likewise
    fused_mean: Any


@triton.jit
def move_of(out, large, first, stop, large_top, fused_top, BLOCK: tl.constexpr):
    """The `Move` of a chunk whose fused logits are at `out`."""
    p, fused, p_mean, fused_mean = (tl.zeros([BLOCK], tl.float32),) * 4
    shift = tl.where(fused_top > -INF, fused_top, 0.0)
    for start in tl.range(first, stop, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        before, after = load(large, ids, stop, True) - large_top, load(out, ids, stop, True) - shift
        ratio = tl.where(before > -INF, after - before, 0.0)
        p += exp(before)
        fused += exp(after)
        p_mean += exp(before) * ratio
        fused_mean += exp(after) * ratio
    return Move(fused_top, tl.sum(p, 0), tl.sum(fused, 0), tl.sum(p_mean, 0), tl.sum(fused_mean, 0))


@triton.jit
def write_move(line, move):
    """Write a chunk's `Move` to its line."""
    for i in tl.static_range(5):
        tl.store(line + i, move[i])


@triton.jit
def merge_move(lines, chunks, SPLITS: tl.constexpr):
    """f and g of a row."""
    tops = column(lines, chunks, 0, -INF, SPLITS)
    top = tl.max(tops, 0)
    moved = tl.where(tops > -INF, tops - top, 0.0)
    p, fused = column(lines, chunks, 1, 0.0, SPLITS), column(lines, chunks, 2, 0.0, SPLITS)
    p_sum, fused_sum = tl.sum(p, 0), tl.sum(fused * tl.exp(moved), 0)
    p_mean = tl.sum(column(lines, chunks, 3, 0.0, SPLITS) + moved * p, 0)
    fused_mean = tl.sum((column(lines, chunks, 4, 0.0, SPLITS) + moved * fused) * tl.exp(moved), 0)
    gain = tl.log(fused_sum / p_sum)
    return tl.maximum(fused_mean / fused_sum - gain, 0.0), tl.maximum(gain - p_mean / p_sum, 0.0)
