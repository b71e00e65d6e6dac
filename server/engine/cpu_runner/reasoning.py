"""Thinking budgets: after so many tokens of reasoning, the marker that ends it."""

# mypy: disable-error-code="untyped-decorator, no-any-return"
from typing import Any

import numpy as np

from fusion_kernels.cpu.vector import jit
from server.engine.cpu_runner.arrays import compiled

# The logit of a token that must come.
FORCED = np.float32(1.0e9)


@jit
def _stands_at(tokens: Any, index: int, length: int, marker: Any) -> bool:
    """Whether the marker is in tokens[:length] at this index."""
    if index + marker.size > length:
        return False
    return (tokens[index : index + marker.size] == marker).all()


@compiled("void(int64[:], int32[:], int32[:,:], int32[:], int32[:], int32[:], int32[:], int32[:], int32[:], int64)")
def update_committed_marker_cache(
    req_ids: Any, thinking_token_budget: Any, all_token_ids: Any, total_len: Any, cached_last_start: Any,
    cached_last_end: Any, cached_scan_pos: Any, reasoning_start_token_ids: Any, natural_reasoning_end_token_ids: Any,
    max_len: int,
) -> None:  # fmt: skip
    """sample.thinking_budget._update_committed_marker_cache_kernel: where reasoning last began and ended.

    The kernel looks at a new request from its end, and stops at the first marker; here all is read once, from its
    beginning: which of the two markers is the later one, all that counts, is the same.

    Args:
        req_ids: [B] int64, slots.
        thinking_token_budget: [slots] int32; below 0 is none.
        all_token_ids: [slots, max_model_len] int32.
        total_len: [slots] int32.
        cached_last_start, cached_last_end, cached_scan_pos: [slots] int32, changed: indices of the last markers (-1:
            none), and up to where was looked.
        reasoning_start_token_ids, natural_reasoning_end_token_ids: [length] int32, the markers.
        max_len: the longer marker's length.
    """
    for i in range(req_ids.size):
        slot = req_ids[i]
        if thinking_token_budget[slot] < 0:
            continue
        length, tokens = total_len[slot], all_token_ids[slot]
        if cached_scan_pos[slot] > length:
            cached_scan_pos[slot], cached_last_start[slot], cached_last_end[slot] = 0, -1, -1
        for index in range(cached_scan_pos[slot], length):
            if _stands_at(tokens, index, length, reasoning_start_token_ids):
                cached_last_start[slot] = index
            if _stands_at(tokens, index, length, natural_reasoning_end_token_ids):
                cached_last_end[slot] = index
        cached_scan_pos[slot] = max(length - max_len + 1, 0)


@compiled(
    "void(float32[:,:], int64[:], int32[:], int32[:,:], int32[:], int32[:], int32[:], int32[:], int32[:], int32[:],"
    " int32[:], int32[:])"
)
def thinking_budget(
    logits: Any, expanded_idx_mapping: Any, thinking_token_budget: Any, all_token_ids: Any, total_len: Any,
    input_ids: Any, expanded_local_pos: Any, cached_last_start: Any, cached_last_end: Any,
    reasoning_start_token_ids: Any, natural_reasoning_end_token_ids: Any, reasoning_end_token_ids: Any,
) -> None:  # fmt: skip
    """sample.thinking_budget._thinking_budget_kernel: force the end of reasoning where its budget is used up.

    Args:
        logits: [rows, V] float32, changed.
        expanded_idx_mapping, expanded_local_pos: [rows] int64, int32, slot and index of each row.
        thinking_token_budget: [slots] int32; below 0 is none.
        all_token_ids, total_len: [slots, max_model_len], [slots] int32.
        input_ids: [rows] int32, the input token of each row: after a request's first, drafts.
        cached_last_start, cached_last_end: as `update_committed_marker_cache` left them.
        reasoning_start_token_ids, natural_reasoning_end_token_ids: [length] int32, the markers to look for.
        reasoning_end_token_ids: [length] int32, the marker to force.
    """
    start, end, forced = reasoning_start_token_ids, natural_reasoning_end_token_ids, reasoning_end_token_ids
    for row in range(logits.shape[0]):
        slot, drafts = expanded_idx_mapping[row], expanded_local_pos[row]
        budget = thinking_token_budget[slot]
        if budget < 0:
            continue
        length = total_len[slot] + drafts
        # What may hold a marker that a draft completes: the drafts, and the tokens just before them.
        first = max(total_len[slot] - max(start.size, end.size, forced.size), 0)
        tail = np.empty(length - first, np.int32)
        for index in range(first, length):
            draft = index - total_len[slot]
            tail[index - first] = input_ids[row - drafts + draft + 1] if draft >= 0 else all_token_ids[slot, index]
        began, ended = cached_last_start[slot], cached_last_end[slot]
        for index in range(max(total_len[slot] - start.size + 1, 0), length):
            if _stands_at(tail, index - first, tail.size, start):
                began = index
        for index in range(max(total_len[slot] - end.size + 1, 0), length):
            if _stands_at(tail, index - first, tail.size, end):
                ended = index
        if began < 0 or began <= ended or length - began - start.size < budget:
            continue
        given = 0
        for size in range(1, min(forced.size - 1, length) + 1):
            if _stands_at(tail, tail.size - size, tail.size, forced[:size]):
                given = size
        logits[row, forced[given]] = FORCED
