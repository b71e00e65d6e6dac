"""What a step changed: tokens accepted and rejected, and the counts of each request."""

# mypy: disable-error-code="untyped-decorator"
from typing import Any

import numpy as np
from torch import Tensor

from server.engine.cpu_runner.arrays import array, compiled, for_logits, line, readable, value

_NO_COUNTS = np.zeros((0, 0), np.int32)
_NO_STARTS = np.zeros(0, np.int32)


@compiled("void(int32[:], int32[:], int32[:], int32[:], int64[:], int32[:])")
def get_num_sampled_and_rejected(
    num_sampled: Any, num_rejected: Any, seq_lens: Any, cu_num_logits: Any, idx_mapping: Any, prefill_len: Any
) -> None:
    """input_batch._get_num_sampled_and_rejected_kernel: none of either where the prompt is not yet read to its end.

    Args:
        num_sampled: [B] int32, changed in place.
        num_rejected: [B] int32, the result: drafts that were not taken.
        seq_lens, cu_num_logits: [max_num_reqs], [B + 1] int32.
        idx_mapping: [B] int64, slots.
        prefill_len: [slots] int32.
    """
    for i in range(idx_mapping.size):
        if seq_lens[i] < prefill_len[idx_mapping[i]]:
            num_sampled[i], num_rejected[i] = 0, 0
        else:
            num_rejected[i] = cu_num_logits[i + 1] - cu_num_logits[i] - num_sampled[i]


def post_update(
    idx_mapping: Tensor,
    num_computed_tokens: Tensor,
    last_sampled_tokens: Tensor,
    output_bin_counts: Tensor | None,
    sampled_tokens: Tensor,
    num_sampled: Tensor,
    num_rejected: Tensor,
    query_start_loc: Tensor | None,
    all_token_ids: Tensor,
    total_len: Tensor,
) -> None:
    """input_batch._post_update_kernel: append the sampled tokens, count them, and count what was computed.

    Args:
        idx_mapping: [B] int64, slots; rows of -1 are skipped.
        num_computed_tokens, total_len: [slots] int32, changed.
        last_sampled_tokens: [slots, 1] int64, changed.
        output_bin_counts: [slots, V] int32, changed, or None.
        sampled_tokens: [B, steps + 1] int64.
        num_sampled, num_rejected: [B] int32.
        query_start_loc: [B + 1] int32, or None: nothing new was computed.
        all_token_ids: [slots, max_model_len] int32, changed.
    """
    update(
        *(array(part) for part in (idx_mapping, num_computed_tokens, last_sampled_tokens)),
        _NO_COUNTS if output_bin_counts is None else array(output_bin_counts),
        *(array(part) for part in (sampled_tokens, num_sampled, num_rejected)),
        _NO_STARTS if query_start_loc is None else array(query_start_loc),
        *(array(part) for part in (all_token_ids, total_len)),
    )


@compiled(
    "void(int64[:], int32[:], int64[:,:], int32[:,:], int64[:,:], int32[:], int32[:], int32[:], int32[:,:], int32[:])"
)
def update(
    slots: Any, computed: Any, last: Any, counts: Any, tokens: Any, sampled: Any, rejected: Any, starts: Any,
    all_tokens: Any, lengths: Any,
) -> None:  # fmt: skip
    """`post_update`; `counts` and `starts` are empty where they are None."""
    for i in range(slots.size):
        slot = slots[i]
        if slot < 0:
            continue
        length, new = lengths[slot], sampled[i]
        if new > 0:
            last[slot, 0] = tokens[i, new - 1]
            lengths[slot] = length + new
        for j in range(new):
            token = tokens[i, j]
            all_tokens[slot, length + j] = token
            if counts.size:
                counts[slot, token] += 1
        if starts.size:
            computed[slot] += starts[i + 1] - starts[i]
        computed[slot] -= rejected[i]


@compiled("void(int64[:], int32[:], int32[:])")
def post_update_num_computed_tokens(idx_mapping: Any, num_computed_tokens: Any, query_start_loc: Any) -> None:
    """input_batch._post_update_num_computed_tokens_kernel: count a step's tokens where nothing is sampled.

    Args:
        idx_mapping: [B] int64, slots.
        num_computed_tokens: [slots] int32, changed.
        query_start_loc: [B + 1] int32.
    """
    for i in range(idx_mapping.size):
        num_computed_tokens[idx_mapping[i]] += query_start_loc[i + 1] - query_start_loc[i]


@compiled("void(int64[:], int64[:], int32[:,:], int32[:], int32[:], int32[:])")
def trace_replay(
    sampled: Any, idx_mapping: Any, trace_token_ids: Any, trace_len: Any, total_len: Any, prompt_len: Any
) -> None:
    """sample.trace_replay._trace_replay_kernel: the token that a request prescribes, in place of the sampled one.

    Args:
        sampled: [B] int64, changed.
        idx_mapping: [B] int64, slots; rows of -1 are skipped.
        trace_token_ids: [slots, max_model_len] int32.
        trace_len, total_len, prompt_len: [slots] int32.
    """
    for i in range(idx_mapping.size):
        slot = idx_mapping[i]
        if slot < 0:
            continue
        step = total_len[slot] - prompt_len[slot]
        if 0 <= step < trace_len[slot]:
            sampled[i] = trace_token_ids[slot, step]


def compact_sampling_mask(
    logits: Tensor,
    cu_num_logits: Tensor,
    num_sampled_tokens: Tensor,
    token_ids: Tensor,
    packed_mask: Tensor,
    counts: Tensor,
    max_num_kept: int,
    rows_per_request: int,
) -> None:
    """sample.output._compact_sampling_mask_kernel: which tokens a sampled one was drawn from.

    Args:
        logits: [rows, V]; tokens with finite logits count.
        cu_num_logits: [B + 1] int32.
        num_sampled_tokens: [B] int32.
        token_ids: [B * `rows_per_request`, `max_num_kept`] int32, a result: the first of them.
        packed_mask: [B * `rows_per_request`, V / 8] uint8, a result: a bit for each token.
        counts: [B * `rows_per_request`] int32, a result: how many there are.
        max_num_kept, rows_per_request: the results' sizes.
    """
    parts = (cu_num_logits, num_sampled_tokens, token_ids, packed_mask, counts)
    support(readable(logits), *(array(part) for part in parts), max_num_kept, rows_per_request)


@for_logits("void(logits, int32[:], int32[:], int32[:,:], uint8[:,:], int32[:], int64, int64)")
def support(
    logits: Any, starts: Any, sampled: Any, tokens: Any, packed: Any, counts: Any, most: int, stride: int
) -> None:
    """`compact_sampling_mask`."""
    for i in range(counts.size):
        request, index = i // stride, i % stride
        counts[i] = 0
        if index >= sampled[request]:
            continue
        packed[i, :] = 0
        entries = line(logits, starts[request] + index)
        for token in range(entries.size):
            if -np.inf < value(entries, token) < np.inf:
                if counts[i] < most:
                    tokens[i, counts[i]] = token
                counts[i] += 1
                packed[i, token >> 3] |= np.uint8(1 << (token & 7))
