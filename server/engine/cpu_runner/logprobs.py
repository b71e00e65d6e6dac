"""Log probabilities and ranks of tokens, and which tokens they are asked for."""

# mypy: disable-error-code="untyped-decorator"
from typing import Any

import torch
from torch import Tensor

from server.engine.cpu_runner.arrays import compiled


def topk_log_softmax(output: Tensor, logits: Tensor, topk_ids: Tensor) -> None:
    """sample.logprob._topk_log_softmax_kernel.

    Args:
        output: [rows, k] float32, the result.
        logits: [rows, V].
        topk_ids: [rows, k] int64.
    """
    logits = logits.float()
    torch.sub(logits.gather(1, topk_ids), logits.logsumexp(-1, keepdim=True), out=output)


def ranks(output: Tensor, logits: Tensor, token_ids: Tensor) -> None:
    """sample.logprob._ranks_kernel: how many tokens are as likely or more; 1 for the likeliest.

    Of a token of -inf all V are; the kernel then counts what pads its last block, too.

    Args:
        output: [rows] int64, the result.
        logits: [rows, V].
        token_ids: [rows].
    """
    torch.sum(logits >= logits.gather(1, token_ids.long().unsqueeze(1)), -1, out=output)


def num_nans(logits: Tensor, num_nans: Tensor) -> None:
    """metrics.logits._num_nans_kernel.

    Args:
        logits: [rows, V].
        num_nans: [rows] int32, the result.
    """
    torch.sum(logits.isnan(), -1, dtype=torch.int32, out=num_nans)


@compiled(
    "void(int64[:,:], boolean[:,:], int64[:], int32[:,:], int64[:], int32[:], int32[:,:], int64)",
)
def fill_logprob_token_ids(
    out_token_ids: Any, out_valid_mask: Any, sampled_token_ids: Any, topk_indices: Any, expanded_idx_mapping: Any,
    num_per_req_token_ids: Any, per_req_token_ids: Any, num_topk: int,
) -> None:  # fmt: skip
    """sample.logprob._fill_logprob_token_ids_kernel: the sampled token, and those asked for or the likeliest.

    Args:
        out_token_ids, out_valid_mask: [rows, 1 + columns] int64, bool, zeroed, the results.
        sampled_token_ids: [rows] int64.
        topk_indices: [rows, `num_topk`] int32.
        expanded_idx_mapping: [rows] int64, slots.
        num_per_req_token_ids, per_req_token_ids: [slots], [slots, most] int32, the tokens that a request named.
        num_topk: so many of the likeliest, where it named none.
    """
    for row in range(sampled_token_ids.size):
        slot = expanded_idx_mapping[row]
        out_token_ids[row, 0] = sampled_token_ids[row]
        out_valid_mask[row, 0] = True
        named = num_per_req_token_ids[slot]
        for j in range(named if named > 0 else num_topk):
            out_token_ids[row, 1 + j] = per_req_token_ids[slot, j] if named > 0 else topk_indices[row, j]
            out_valid_mask[row, 1 + j] = True


@compiled("void(int64[:], int32[:], int64[:], int32[:], int32[:,:])")
def prompt_logprobs_token_ids(
    prompt_logprobs_token_ids: Any, query_start_loc: Any, idx_mapping: Any, num_computed_tokens: Any,
    all_token_ids: Any,
) -> None:  # fmt: skip
    """sample.prompt_logprob._prompt_logprobs_token_ids_kernel: the token after each of this step's tokens.

    Args:
        prompt_logprobs_token_ids: [tokens] int64, the result.
        query_start_loc: [B + 1] int32.
        idx_mapping: [B] int64, slots.
        num_computed_tokens: [slots] int32.
        all_token_ids: [slots, max_model_len] int32; after its end, 0.
    """
    longest = all_token_ids.shape[1]
    for i in range(idx_mapping.size):
        slot = idx_mapping[i]
        for j in range(query_start_loc[i], query_start_loc[i + 1]):
            index = num_computed_tokens[slot] + 1 + j - query_start_loc[i]
            prompt_logprobs_token_ids[j] = all_token_ids[slot, index] if index < longest else 0
