"""Repetition, frequency and presence penalties, and the counts of tokens that they need."""

# mypy: disable-error-code="untyped-decorator"
from typing import Any

import numpy as np
from torch import Tensor

from fusion_kernels.cpu.threads import over_ranges
from server.engine.cpu_runner.arrays import SHARE, array, compiled, line

# Tokens of one share of work.
BLOCK = 8192


def penalties(
    logits: Tensor,
    expanded_idx_mapping: Tensor,
    token_ids: Tensor,
    expanded_local_pos: Tensor,
    repetition_penalty: Tensor,
    frequency_penalty: Tensor,
    presence_penalty: Tensor,
    prompt_bin_mask: Tensor,
    output_bin_counts: Tensor,
    vocab_size: int,
) -> None:
    """sample.penalties._penalties_kernel: lower (or raise) what the prompt and the output have said already.

    Drafts of a request count as its output in the rows after them.

    Args:
        logits: [rows, V] float32, changed in place.
        expanded_idx_mapping: [rows] int64, slots.
        token_ids: [rows] int32, the input token of each row.
        expanded_local_pos: [rows] int32, the row's index in its request.
        repetition_penalty, frequency_penalty, presence_penalty: [slots] float32.
        prompt_bin_mask: [slots, V / 32] int32, a bit for each token of the prompt.
        output_bin_counts: [slots, V] int32.
        vocab_size: V.
    """
    settings = (repetition_penalty, frequency_penalty, presence_penalty, prompt_bin_mask, output_bin_counts)
    parts = [array(part) for part in (logits, expanded_idx_mapping, token_ids, expanded_local_pos, *settings)]
    blocks = (vocab_size + BLOCK - 1) // BLOCK

    def run(first: int, stop: int) -> None:
        penalise(first, stop, blocks, *parts)

    over_ranges(run, blocks * logits.shape[0], SHARE // BLOCK)


@compiled(
    "void(int64, int64, int64, float32[:,:], int64[:], int32[:], int32[:], float32[:], float32[:], float32[:],"
    " int32[:,:], int32[:,:])"
)
def penalise(
    first: int, stop: int, blocks: int, logits: Any, slots: Any, tokens: Any, indices: Any, repetition: Any,
    frequency: Any, presence: Any, prompt: Any, output: Any,
) -> None:  # fmt: skip
    """Blocks first .. stop, counted through all rows."""
    for unit in range(first, stop):
        row, block = unit // blocks, unit % blocks
        slot = slots[row]
        scale, often, ever = repetition[slot], frequency[slot], presence[slot]
        if scale == 1.0 and often == 0.0 and ever == 0.0:
            continue
        start = block * BLOCK
        end = min(start + BLOCK, logits.shape[1])
        entries, bits = line(logits, row)[start:end], line(prompt, slot)
        counts = line(output, slot)[start:end]
        if indices[row] > 0:
            counts = counts.copy()
            for draft in range(row - indices[row] + 1, row + 1):
                if start <= tokens[draft] < end:
                    counts[tokens[draft] - start] += 1
        shrink = np.float32(1.0) / scale
        for j in range(end - start):
            token = start + j
            count, logit = counts[j], entries[j]
            said = count > 0
            if said or (bits[token >> 5] >> np.int32(token & 31)) & 1:
                logit *= shrink if logit > 0 else scale
            entries[j] = logit - often * np.float32(count) - (ever if said else np.float32(0.0))


@compiled("void(int64[:], int32[:,:], int32[:], int32[:], int32[:,:], int32[:,:])")
def bincount(
    expanded_idx_mapping: Any, all_token_ids: Any, prompt_len: Any, prefill_len: Any, prompt_bin_mask: Any,
    output_bin_counts: Any,
) -> None:  # fmt: skip
    """sample.penalties._bincount_kernel: which tokens a new request's prompt holds, how often its output holds each.

    Args:
        expanded_idx_mapping: [N] int64, the slots of the new requests.
        all_token_ids: [slots, max_model_len] int32.
        prompt_len, prefill_len: [slots] int32; what lies between is output from before a preemption.
        prompt_bin_mask: [slots, V / 32] int32, zeroed, a result.
        output_bin_counts: [slots, V] int32, zeroed, a result.
    """
    for i in range(expanded_idx_mapping.size):
        slot = expanded_idx_mapping[i]
        for j in range(prompt_len[slot]):
            token = all_token_ids[slot, j]
            prompt_bin_mask[slot, token >> 5] |= np.int32(1) << np.int32(token & 31)
        for j in range(prompt_len[slot], prefill_len[slot]):
            output_bin_counts[slot, all_token_ids[slot, j]] += 1
