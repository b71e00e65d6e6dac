"""Of each block of logits the largest and the sum of exponentials: what the verification of drafts computes with."""

# mypy: disable-error-code="untyped-decorator"
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from fusion_kernels.cpu.threads import over_ranges
from fusion_kernels.cpu.vector import Jitted, exp, inlined, jit
from server.engine.cpu_runner.arrays import SHARE, array, compiled, line, readable, value

# Tokens of one block.
BLOCK = 8192
# Drafts without a distribution.
NO_DRAFTS = np.zeros((0, 0, 0), np.float32)


def for_both(signature: str) -> Callable[[Jitted], Jitted]:
    """`compiled` for each pair of dtypes of the large model's logits and the draft's."""
    return compiled(
        *(
            signature.replace("target", f"{target}[:,:]").replace("draft", f"{draft}[:,:,:]")
            for target in ("float32", "int16")
            for draft in ("float32", "int16")
        )
    )


@inlined
def largest(entries: Any, start: int, end: int, temperature: Any) -> Any:
    """Where the largest of entries[start:end] is, and itself divided by the temperature; NaN is least."""
    winner, top = start, np.float32(-np.inf)
    for token in range(start, end):
        x = value(entries, token) / temperature
        if x > top:
            winner, top = token, x
    return winner, top


@inlined
def exponentials(entries: Any, start: int, end: int, temperature: Any, top: Any) -> Any:
    """The sum of exp(entries[start:end] / temperature - top); 0 where all are -inf."""
    total = np.float32(0.0)
    if top == -np.inf:
        return total
    for token in range(start, end):
        x = value(entries, token) / temperature
        total += exp(x - top) if x > -np.inf else np.float32(0.0)
    return total


@jit
def log_sum(tops: Any, sums: Any) -> Any:
    """The logarithm of a row's sum of exponentials, from its blocks'."""
    top = tops.max()
    total = np.float32(0.0)
    for block in range(tops.size):
        total += sums[block] * np.float32(math.exp(tops[block] - top))
    return top + np.float32(math.log(total))


def compute_local_logits_stats(
    target_local_argmax: Tensor,
    target_local_max: Tensor,
    target_local_sumexp: Tensor,
    draft_local_max: Tensor,
    draft_local_sumexp: Tensor,
    target_logits: Tensor,
    draft_logits: Tensor | None,
    expanded_idx_mapping: Tensor,
    expanded_local_pos: Tensor,
    temp: Tensor,
    vocab_size: int,
    num_speculative_steps: int,
) -> None:
    """spec_decode.rejection_sampler_utils._compute_local_logits_stats_kernel: largest logit, sum of exponentials.

    Rows of bonus tokens (index `num_speculative_steps`) need none of it; at temperature 0 only the largest counts.

    Args:
        target_local_argmax: [rows, blocks] int64, a result, for blocks of 8,192 tokens.
        target_local_max, target_local_sumexp: [rows, blocks] float32, results.
        draft_local_max, draft_local_sumexp: the same of `draft_logits` / temperature.
        target_logits: [rows, >= V], already divided by the temperature.
        draft_logits: [slots, steps, >= V], or None where drafts have no distribution.
        expanded_idx_mapping, expanded_local_pos: [rows] int64, int32, slot and index of each row.
        temp: [slots] float32.
        vocab_size: V.
        num_speculative_steps: most drafts of a request.
    """
    results = (target_local_argmax, target_local_max, target_local_sumexp, draft_local_max, draft_local_sumexp)
    parts = [array(part) for part in results]
    rows = [array(part) for part in (expanded_idx_mapping, expanded_local_pos, temp)]
    target = readable(target_logits[:, :vocab_size])
    draft = NO_DRAFTS if draft_logits is None else readable(draft_logits[:, :, :vocab_size])

    def run(first: int, stop: int) -> None:
        block_statistics(first, stop, *parts, target, draft, *rows, num_speculative_steps)

    over_ranges(run, target_local_argmax.numel(), SHARE // BLOCK)


@for_both(
    "void(int64, int64, int64[:,:], float32[:,:], float32[:,:], float32[:,:], float32[:,:], target, draft, int64[:],"
    " int32[:], float32[:], int64)"
)
def block_statistics(
    first: int, stop: int, winners: Any, tops: Any, sums: Any, draft_tops: Any, draft_sums: Any, target: Any,
    draft: Any, slots: Any, indices: Any, temps: Any, steps: int,
) -> None:  # fmt: skip
    """Blocks first .. stop, counted through all rows."""
    blocks, vocabulary = winners.shape[1], target.shape[1]
    for unit in range(first, stop):
        row, block = unit // blocks, unit % blocks
        slot, index = slots[row], indices[row]
        if index >= steps:
            continue
        start = block * BLOCK
        end = min(start + BLOCK, vocabulary)
        winner, top = largest(line(target, row), start, end, np.float32(1.0))
        winners[row, block], tops[row, block] = winner, top
        if temps[slot] == 0.0:
            continue
        sums[row, block] = exponentials(line(target, row), start, end, np.float32(1.0), top)
        if draft.size:
            entries = line(draft[slot], index)
            _, top = largest(entries, start, end, temps[slot])
            draft_tops[row, block] = top
            draft_sums[row, block] = exponentials(entries, start, end, temps[slot], top)
