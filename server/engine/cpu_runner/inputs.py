"""What the model reads in a step: token ids, positions, lengths, and which of its rows become logits."""

# mypy: disable-error-code="untyped-decorator"
from typing import Any

import numpy as np
import torch
from torch import Tensor

from server.engine.cpu_runner.arrays import array, bytes_at, compiled


@compiled("void(int32[:], int32[:,:], int64[:], int32[:], int32[:,:], int32[:], int32[:])")
def prepare_prefill_inputs(
    input_ids: Any, next_prefill_tokens: Any, idx_mapping: Any, query_start_loc: Any, all_token_ids: Any,
    prefill_lens: Any, num_computed_tokens: Any,
) -> None:  # fmt: skip
    """input_batch._prepare_prefill_inputs_kernel: the prompt tokens of this step, and the few that follow them.

    Args:
        input_ids: [tokens] int32, the result.
        next_prefill_tokens: [lookahead, slots] int32, the prompt tokens after this step's; 0 after the prompt's end.
        idx_mapping: [B] int64, the slot of each request.
        query_start_loc: [B + 1] int32.
        all_token_ids: [slots, max_model_len] int32.
        prefill_lens, num_computed_tokens: [slots] int32.
    """
    for i in range(idx_mapping.size):
        slot = idx_mapping[i]
        done, end = num_computed_tokens[slot], prefill_lens[slot]
        if done >= end:
            continue
        first, length = query_start_loc[i], query_start_loc[i + 1] - query_start_loc[i]
        for j in range(length):
            input_ids[first + j] = all_token_ids[slot, done + j]
        for j in range(next_prefill_tokens.shape[0]):
            index = done + length + j
            next_prefill_tokens[j, slot] = all_token_ids[slot, index] if index < end else 0


@compiled("void(int64[:], int32[:], int64[:], int32[:], int32[:], int64)")
def prepare_pos_seq_lens(
    pos: Any, seq_lens: Any, idx_mapping: Any, query_start_loc: Any, num_computed_tokens: Any, max_num_reqs: int
) -> None:
    """input_batch._prepare_pos_seq_lens_kernel: the position of each token, the length of each sequence.

    Args:
        pos: [tokens] int64, a result.
        seq_lens: [max_num_reqs] int32, a result; 0 after the batch's B requests.
        idx_mapping: [B] int64, slots.
        query_start_loc: [B + 1] int32.
        num_computed_tokens: [slots] int32.
        max_num_reqs: the length of `seq_lens`.
    """
    requests = idx_mapping.size
    for i in range(requests):
        done = num_computed_tokens[idx_mapping[i]]
        first, length = query_start_loc[i], query_start_loc[i + 1] - query_start_loc[i]
        seq_lens[i] = done + length
        for j in range(length):
            pos[first + j] = done + j
    seq_lens[requests:max_num_reqs] = 0


@compiled(
    "void(int32[:], int64[:], int64[:,:], int32[:], int32[:], int32[:], int64[:,:], int32[:], int64[:], int64)",
)
def combine_sampled_and_draft_tokens(
    input_ids: Any, idx_mapping: Any, last_sampled_tokens: Any, query_start_loc: Any, seq_lens: Any, prefill_len: Any,
    draft_tokens: Any, cu_num_logits: Any, logits_indices: Any, num_new_sampled_tokens: int,
) -> None:  # fmt: skip
    """input_batch._combine_sampled_and_draft_tokens_kernel: generated tokens as input, and the rows for the logits.

    Args:
        input_ids: [tokens] int32; of requests past their prompt, the last token and the drafts are written.
        idx_mapping: [B] int64, slots.
        last_sampled_tokens: [slots, 1] int64.
        query_start_loc, seq_lens: [B + 1], [max_num_reqs] int32.
        prefill_len: [slots] int32.
        draft_tokens: [slots, steps] int64.
        cu_num_logits: [B + 1] int32.
        logits_indices: [logits] int64, the result: which of the tokens get logits.
        num_new_sampled_tokens: 0 or 1, logits of a request besides those of its drafts.
    """
    for i in range(idx_mapping.size):
        slot = idx_mapping[i]
        first = cu_num_logits[i]
        length = cu_num_logits[i + 1] - first
        drafts = length - num_new_sampled_tokens
        end = query_start_loc[i + 1]
        for j in range(length):
            logits_indices[first + j] = end - length + j
        if seq_lens[i] <= prefill_len[slot]:
            continue
        if num_new_sampled_tokens > 0 and seq_lens[i] - length >= prefill_len[slot]:
            input_ids[end - length] = last_sampled_tokens[slot, 0]
        for j in range(drafts):
            input_ids[end - drafts + j] = draft_tokens[slot, j]


@compiled("void(int64[:], int64[:], int32[:], int32[:])")
def expand_idx_mapping(
    idx_mapping: Any, expanded_idx_mapping: Any, expanded_local_pos: Any, cu_num_logits: Any
) -> None:
    """input_batch._expand_idx_mapping_kernel: the slot of each row of logits, and its index in its request.

    Args:
        idx_mapping: [B] int64, slots.
        expanded_idx_mapping: [logits] int64, a result.
        expanded_local_pos: [logits] int32, a result: 0, 1, .. for each request.
        cu_num_logits: [B + 1] int32.
    """
    for i in range(idx_mapping.size):
        for row in range(cu_num_logits[i], cu_num_logits[i + 1]):
            expanded_idx_mapping[row] = idx_mapping[i]
            expanded_local_pos[row] = row - cu_num_logits[i]


@compiled(
    "void(int64[:,:], int32[:,:], int32[:], int64[:], int32[:], int32[:], int32[:], int64)",
)
def prepare_rope_positions(
    positions: Any, prefill_positions: Any, prefill_delta: Any, idx_mapping: Any, query_start_loc: Any,
    prefill_lens: Any, num_computed_tokens: Any, num_dims: int,
) -> None:  # fmt: skip
    """mm.rope._prepare_rope_positions_kernel: the positions of each token in several dimensions (M-RoPE).

    Args:
        positions: [D, tokens] int64, the result.
        prefill_positions: [slots * D, max_model_len] int32, those of the prompt.
        prefill_delta: [slots] int32, what to add to the position of a generated token.
        idx_mapping: [B] int64, slots.
        query_start_loc: [B + 1] int32.
        prefill_lens, num_computed_tokens: [slots] int32.
        num_dims: D.
    """
    for i in range(idx_mapping.size):
        slot = idx_mapping[i]
        done, first = num_computed_tokens[slot], query_start_loc[i]
        for dim in range(num_dims):
            for j in range(query_start_loc[i + 1] - first):
                position = done + j + prefill_delta[slot]
                if done < prefill_lens[slot]:
                    position = prefill_positions[slot * num_dims + dim, done + j]
                positions[dim, first + j] = position


def apply_prompt_embeds(
    inputs_embeds: Tensor,
    embeds_ptrs: Tensor,
    mask_ptrs: Tensor,
    embeds_lens: Tensor,
    idx_mapping: Tensor,
    query_start_loc: Tensor,
    num_computed_tokens: Tensor,
    hidden_size: int,
) -> None:
    """model_states.prompt_embeds._apply_prompt_embeds_kernel: a request's own embeddings in place of its tokens'.

    Args:
        inputs_embeds: [tokens, hidden_size], changed; the embeddings have its dtype.
        embeds_ptrs: [slots] uint64, addresses of [length, hidden_size].
        mask_ptrs: [slots] uint64, addresses of [length] uint8, 1 where a token is meant after all; 0 is no mask.
        embeds_lens: [slots] int32; 0 where a request has none.
        idx_mapping: [B] int64, slots.
        query_start_loc: [B + 1] int32.
        num_computed_tokens: [slots] int32.
        hidden_size: numbers per token.
    """
    tables = [array(part) for part in (embeds_ptrs, mask_ptrs, embeds_lens)]
    batch = [array(part) for part in (idx_mapping, query_start_loc, num_computed_tokens)]
    overlay(inputs_embeds.view(torch.uint8).numpy(), *tables, *batch, hidden_size * inputs_embeds.element_size())


@compiled("void(uint8[:,:], uint64[:], uint64[:], int32[:], int64[:], int32[:], int32[:], int64)")
def overlay(
    target: Any, addresses: Any, masks: Any, lengths: Any, slots: Any, starts: Any, computed: Any, size: int
) -> None:
    """`apply_prompt_embeds` on bytes, `size` of them per token."""
    for i in range(slots.size):
        slot, first = slots[i], starts[i]
        done = np.int64(computed[slot])
        for j in range(min(starts[i + 1] - first, lengths[slot] - done)):
            if masks[slot] != 0 and bytes_at(np.int64(masks[slot]) + done + j, 1)[0] != 0:
                continue
            target[first + j, :size] = bytes_at(np.int64(addresses[slot]) + (done + j) * size, size)
