"""A member's own batch: of one forward pass, only the tokens of those requests that use the member.

Which requests these are, and where their tokens lie, is known on the host; what changes with them on the device
(lengths, positions, block tables) is gathered there by indices that go over in one copy, so nothing waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from vllm.utils import torch_utils
from vllm.v1.worker.gpu.input_batch import InputBatch


@dataclass(frozen=True, eq=False)
class SubBatch:
    """What a member reads in one forward pass, and which of the pass' rows of logits its own rows are."""

    batch: InputBatch
    """As the model runner's, restricted: n requests, m tokens, no padding."""
    block_tables: tuple[torch.Tensor, ...]
    """By KV cache group, [n, blocks]."""
    slot_mappings: torch.Tensor
    """[groups, m]."""
    tokens: np.ndarray | None
    """[m] the tokens' indices in the whole pass, -1 of a prompt of the member's own; `None`: all, in order."""
    logit_tokens: torch.Tensor | None
    """[l] the tokens, among the m, that give logits; `None` where each one does."""
    logit_rows: torch.Tensor | None
    """[l] their rows among those of the whole pass; `None` where they are all rows, in order."""


def restrict(
    batch: InputBatch, block_tables: tuple[torch.Tensor, ...], slot_mappings: torch.Tensor, used: np.ndarray
) -> SubBatch:
    """The sub-batch of the requests that `used` [num_reqs] bool marks, at least one."""
    starts, lengths = (
        batch.query_start_loc_np[: batch.num_reqs],
        np.diff(batch.query_start_loc_np[: batch.num_reqs + 1]),
    )
    logit_starts, logits = batch.cu_num_logits_np[: batch.num_reqs], np.diff(batch.cu_num_logits_np)
    # Rows of logits are a request's last tokens.
    only_logits = bool((lengths == logits).all())
    if used.all():
        tokens_with_logits = None if only_logits else batch.logits_indices
        return SubBatch(
            _unpadded(batch),
            tuple(table[: batch.num_reqs] for table in block_tables),
            slot_mappings[:, : batch.num_tokens],
            None,
            tokens_with_logits,
            None,
        )
    requests = np.flatnonzero(used)
    lengths, logits = lengths[requests], logits[requests]
    query_start_loc = np.zeros(len(requests) + 1, dtype=np.int32)
    np.cumsum(lengths, out=query_start_loc[1:])
    tokens = ranges(starts[requests], lengths)
    logit_tokens = ranges(query_start_loc[1:] - logits, logits)
    logit_rows = ranges(logit_starts[requests], logits)
    on_device = to_device(batch.positions.device, requests, tokens, logit_tokens, logit_rows, query_start_loc)
    request_index, token_index, logit_token_index, logit_row_index, starts_index = on_device
    restricted = replace(
        batch,
        num_reqs=len(requests),
        num_reqs_after_padding=len(requests),
        idx_mapping_np=batch.idx_mapping_np[requests],
        num_scheduled_tokens=batch.num_scheduled_tokens[requests],
        num_tokens=len(tokens),
        num_tokens_after_padding=len(tokens),
        query_start_loc=starts_index.to(batch.query_start_loc.dtype),
        query_start_loc_np=query_start_loc,
        seq_lens=batch.seq_lens[request_index],
        seq_lens_cpu_upper_bound=batch.seq_lens_cpu_upper_bound[torch.from_numpy(requests)],
        is_prefilling_np=batch.is_prefilling_np[requests],
        input_ids=batch.input_ids[token_index],
        positions=batch.positions[token_index],
        prompt_lens=None if batch.prompt_lens is None else batch.prompt_lens[request_index],
        fast_prefill=None,
    )
    return SubBatch(
        restricted,
        tuple(table[request_index] for table in block_tables),
        slot_mappings[:, token_index],
        tokens,
        None if bool((lengths == logits).all()) else logit_token_index,
        logit_row_index,
    )


@dataclass(frozen=True, eq=False)
class Order:
    """How the requests and tokens of several sub-batches lie in one."""

    requests: np.ndarray
    """[n] which of all requests, one sub-batch after the other, stands at each place."""
    inverse: torch.Tensor | None
    """[m] at which place each token, in that order, lies; `None`: they lie in it."""

    def back(self, states: torch.Tensor) -> torch.Tensor:
        """States [m, width] of the joined batch's tokens, one sub-batch after the other."""
        return states if self.inverse is None else states[self.inverse]


def joined(subs: Sequence[SubBatch]) -> tuple[SubBatch, Order]:
    """Several sub-batches of one step as one, requests with fewer tokens first: attention wants decodes to lead."""
    batches = [sub.batch for sub in subs]
    lengths = np.concatenate([batch.num_scheduled_tokens[: batch.num_reqs] for batch in batches])
    order = np.argsort(lengths, kind="stable")
    starts = np.cumsum(lengths) - lengths
    query_start_loc = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths[order], out=query_start_loc[1:])
    tokens = ranges(starts[order], lengths[order])
    device = batches[0].positions.device
    moved = bool((order[1:] < order[:-1]).any())
    inverse = np.empty_like(tokens)
    inverse[tokens] = np.arange(len(tokens))
    requests, token_index, back, queries = to_device(device, order, tokens, inverse, query_start_loc)

    def of_requests(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        whole = torch.cat(list(parts))
        return whole[requests] if moved else whole

    def of_tokens(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        whole = torch.cat(list(parts), dim=-1)
        return whole[..., token_index] if moved else whole

    def on_host(parts: Sequence[np.ndarray]) -> np.ndarray:
        whole: np.ndarray = np.concatenate(parts)[order]
        return whole

    upper = torch.cat([batch.seq_lens_cpu_upper_bound[: batch.num_reqs] for batch in batches])
    prompts = [batch.prompt_lens for batch in batches if batch.prompt_lens is not None]
    whole = replace(
        batches[0],
        num_reqs=len(lengths),
        num_reqs_after_padding=len(lengths),
        idx_mapping_np=on_host([batch.idx_mapping_np[: batch.num_reqs] for batch in batches]),
        num_scheduled_tokens=lengths[order],
        num_tokens=len(tokens),
        num_tokens_after_padding=len(tokens),
        query_start_loc=queries.to(batches[0].query_start_loc.dtype),
        query_start_loc_np=query_start_loc,
        seq_lens=of_requests([batch.seq_lens[: batch.num_reqs] for batch in batches]),
        seq_lens_cpu_upper_bound=upper[torch.from_numpy(order)],
        is_prefilling_np=on_host([batch.is_prefilling_np[: batch.num_reqs] for batch in batches]),
        input_ids=of_tokens([batch.input_ids[: batch.num_tokens] for batch in batches]),
        positions=of_tokens([batch.positions[: batch.num_tokens] for batch in batches]),
        prompt_lens=of_requests(prompts) if len(prompts) == len(batches) else None,
        max_query_len=None,
        fast_prefill=None,
    )
    tables = tuple(of_requests(of_group) for of_group in zip(*(sub.block_tables for sub in subs), strict=True))
    mappings = of_tokens([sub.slot_mappings for sub in subs])
    return SubBatch(whole, tables, mappings, None, None, None), Order(order, back if moved else None)


def _unpadded(batch: InputBatch) -> InputBatch:
    """The batch without what pads it to the size of a CUDA graph."""
    requests, tokens = batch.num_reqs, batch.num_tokens
    return replace(
        batch,
        num_reqs_after_padding=requests,
        num_tokens_after_padding=tokens,
        query_start_loc=batch.query_start_loc[: requests + 1],
        query_start_loc_np=batch.query_start_loc_np[: requests + 1],
        seq_lens=batch.seq_lens[:requests],
        seq_lens_cpu_upper_bound=batch.seq_lens_cpu_upper_bound[:requests],
        input_ids=batch.input_ids[:tokens],
        positions=batch.positions[:tokens],
        fast_prefill=None,
    )


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers starts[i] .. starts[i] + lengths[i] - 1 of all i, one after the other, int64."""
    ends = np.cumsum(lengths)
    numbers: np.ndarray = np.arange(lengths.sum(), dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)
    return numbers


def to_device(device: torch.device, *arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Integer arrays as int64 tensors on the device, in one copy."""
    packed = np.concatenate(arrays, dtype=np.int64)
    # By the module: on CPUs vLLM puts another function into it.
    tensor = torch_utils.async_tensor_h2d(packed, device=device)
    return torch.split(tensor, [len(array) for array in arrays])
