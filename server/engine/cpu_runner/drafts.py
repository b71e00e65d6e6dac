"""Speculation around the verification: a draft model's inputs, and which of a step's tokens are drafts."""

# mypy: disable-error-code="untyped-decorator"
from typing import Any

from server.engine.cpu_runner.arrays import compiled


@compiled("void(int32[:], int64[:], int32[:], int64[:], int64[:], int64[:], int32[:], int32[:])")
def gather_draft_sampled(
    draft_sampled: Any, pos: Any, input_ids: Any, positions: Any, logits_indices: Any, expanded_idx_mapping: Any,
    expanded_local_pos: Any, prefill_len: Any,
) -> None:  # fmt: skip
    """spec_decode.rejection_sampler._gather_draft_sampled_kernel: input token and position of each row of logits.

    Args:
        draft_sampled: [rows] int32, a result; -1 where a step within the prompt stands for a draft.
        pos: [rows] int64, a result.
        input_ids, positions: [tokens] int32, int64.
        logits_indices: [rows] int64, tokens.
        expanded_idx_mapping: [rows] int64, slots.
        expanded_local_pos: [rows] int32, the row's index in its request.
        prefill_len: [slots] int32.
    """
    for row in range(logits_indices.size):
        token = logits_indices[row]
        index = expanded_local_pos[row]
        pos[row] = positions[token]
        held = index > 0 and positions[token] - index < prefill_len[expanded_idx_mapping[row]]
        draft_sampled[row] = -1 if held else input_ids[token]


@compiled("void(int64[:], int64[:,:], int32[:], int32[:])")
def flatten_sampled(flat_sampled: Any, sampled: Any, num_sampled: Any, cu_num_logits: Any) -> None:
    """spec_decode.rejection_sampler._flatten_sampled_kernel: the sampled tokens of all requests in one row.

    Args:
        flat_sampled: [rows] int64, the result.
        sampled: [B, steps + 1] int64.
        num_sampled: [B] int32.
        cu_num_logits: [B + 1] int32.
    """
    for i in range(num_sampled.size):
        for j in range(num_sampled[i]):
            flat_sampled[cu_num_logits[i] + j] = sampled[i, j]


@compiled(
    "void(int32[:], int64[:], int32[:,:], int64[:], int32[:], int64[:], int64[:], int32[:], int32[:], int32[:],"
    " int32[:], int32[:], int64, int64)"
)
def prepare_prefill_inputs(
    target_input_ids: Any, target_positions: Any, last_sampled: Any, idx_mapping: Any, out_input_ids: Any,
    out_positions: Any, last_token_indices: Any, out_query_start_loc: Any, out_seq_lens: Any, query_start_loc: Any,
    seq_lens: Any, num_rejected: Any, max_num_reqs: int, max_model_len: int,
) -> None:  # fmt: skip
    """spec_decode.standalone_ar.speculator._prepare_prefill_inputs_kernel: what a draft model reads of this step.

    For each request its accepted tokens, the newly sampled one, and 0 for each rejected draft: one token more than
    the large model read.

    Args:
        target_input_ids, target_positions: [tokens] int32, int64.
        last_sampled: [slots, 1] int32.
        idx_mapping: [B] int64, slots.
        out_input_ids, out_positions: [tokens + B] int32, int64, results.
        last_token_indices: [max_num_reqs] int64, a result: the newly sampled tokens; 0 after the batch.
        out_query_start_loc, out_seq_lens: [max_num_reqs + 1], [max_num_reqs] int32, results.
        query_start_loc, seq_lens: [B + 1], [B] int32.
        num_rejected: [B] int32.
        max_num_reqs: requests of the largest batch.
        max_model_len: positions end before it.
    """
    requests = idx_mapping.size
    for i in range(requests):
        first, stop = query_start_loc[i], query_start_loc[i + 1]
        valid = stop - first - num_rejected[i]
        index = first + i
        for j in range(stop - first + 1):
            token = 0
            if j < valid:
                token = target_input_ids[first + j]
            elif j == valid:
                token = last_sampled[idx_mapping[i], 0]
            out_input_ids[index + j] = token
            out_positions[index + j] = min(target_positions[first] + j, max_model_len - 1)
        last_token_indices[i] = index + valid
        out_query_start_loc[i] = index
        out_seq_lens[i] = min(seq_lens[i] + 1, max_model_len)
    out_query_start_loc[requests : max_num_reqs + 1] = query_start_loc[requests] + requests
    out_seq_lens[requests:max_num_reqs] = 0
    last_token_indices[requests:max_num_reqs] = 0
