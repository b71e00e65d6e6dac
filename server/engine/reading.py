"""The sub-batches of a member that reads a prompt of its own for some of its requests (`server.engine.own_prompts`).

It has other tokens in a step than the large model: of its own prompt, at its own positions and places, and more or
fewer of them. Of each request they are a stretch that ends with the member's counterpart of the request's newest token,
so positions and lengths follow from those of the step, which the device alone knows where tokens are verified.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from vllm.v1.attention.backends.utils import PAD_SLOT_ID
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.input_batch import InputBatch

from server.engine.slots import SlotTable
from server.engine.sub_batch import SubBatch, ranges, to_device

_NOT_OF_THE_STEP = -1


@dataclass(frozen=True, eq=False)
class Stretch:
    """What n requests have a member read in one pass: of each, `count` tokens, after which `behind` more follow."""

    requests: np.ndarray
    """[n] by their places in the step."""
    count: np.ndarray
    """[n], at least 1."""
    behind: np.ndarray
    """[n] tokens of later passes of the same step."""

    @property
    def owners(self) -> np.ndarray:
        """[m] the request, of the n, that each token belongs to."""
        return np.repeat(np.arange(len(self.requests)), self.count)

    @property
    def to_end(self) -> np.ndarray:
        """[m] how many tokens of its request follow each token in this step."""
        ends: np.ndarray = np.repeat(np.cumsum(self.count) + self.behind, self.count) - 1
        numbers: np.ndarray = ends - np.arange(len(ends))
        return numbers


class Reading:
    """What a member reads in one step, in passes of at most `most` tokens."""

    def __init__(
        self, batch: InputBatch, tables: BlockTables, table: SlotTable, member: int, used: np.ndarray, most: int
    ) -> None:
        self._batch, self._tables, self._table, self._member, self._most = batch, tables, table, member, most
        slots = batch.idx_mapping_np
        self._shift, self._start = table.alignments[slots, member].T
        ahead = self._start - self._shift
        # The first step of a request is the one in which the member gets ahead.
        first = batch.num_computed_tokens_np[: batch.num_reqs] + np.where(table.begun[slots], ahead, 0)
        stop = batch.num_computed_tokens_np[: batch.num_reqs] + batch.num_scheduled_tokens + ahead
        first = np.where(table.from_start[slots, member], 0, np.maximum(first, self._start))
        self._requests = np.flatnonzero(used & (stop > first))
        self._first, self._stop = first[self._requests], stop[self._requests]
        self._logits = np.diff(batch.cu_num_logits_np)
        """[B] the last tokens of each request, which give logits."""

    def stretches(self) -> Iterator[Stretch]:
        """The passes. Tokens of lower places come first: a request may find a block that another fills in this step."""
        first, stop, logits = self._first, self._stop, self._logits[self._requests]
        while len(first) and (first < stop).any():
            upto = np.clip(self._reach(first, stop), first, stop)
            # The tokens that give logits stay together; they are as many as the step has anyway, so they fit.
            cut = (upto > stop - logits) & (upto < stop)
            upto = np.where(cut, np.maximum(first, stop - logits), upto)
            if (upto == first).all():
                upto = np.where(cut, stop, upto)
            some = upto > first
            yield Stretch(self._requests[some], (upto - first)[some], (stop - upto)[some])
            first = upto

    def _reach(self, first: np.ndarray, stop: np.ndarray) -> int:
        """The highest place up to which all requests' tokens together fit into one pass."""
        low, high = int(first.min()), int(stop.max())
        if (stop - first).sum() <= self._most:
            return high
        while low < high:
            middle = (low + high + 1) // 2
            fits = np.clip(middle - first, 0, stop - first).sum() <= self._most
            low, high = (middle, high) if fits else (low, middle - 1)
        # One place of as many requests as there are always fits: no more of them run at once than tokens.
        return low

    def sub_batch(self, stretch: Stretch, block_tables: tuple[torch.Tensor, ...], max_model_len: int) -> SubBatch:
        """One pass as the member's batch."""
        batch, requests, owners, to_end = self._batch, stretch.requests, stretch.owners, stretch.to_end
        starts, last = batch.query_start_loc_np[requests], batch.query_start_loc_np[requests + 1] - 1
        shift, start = self._shift[requests], self._start[requests]
        query_start_loc = np.zeros(len(requests) + 1, dtype=np.int32)
        np.cumsum(stretch.count, out=query_start_loc[1:])
        source = last[owners] - to_end
        known, ids = self._known(requests, owners, to_end)
        logits = np.where(stretch.behind == 0, self._logits[requests], 0)
        logit_tokens = ranges(query_start_loc[1:] - logits, logits)
        logit_rows = ranges(batch.cu_num_logits_np[requests], logits)
        from_step = np.maximum(source, starts[owners])
        offset = -(shift[owners] + to_end)
        cut = shift + stretch.behind
        device = batch.positions.device
        packed = to_device(
            device, requests, last[owners], offset, start[owners], from_step, known, ids, logit_tokens, logit_rows,
            query_start_loc, cut, start,
        )  # fmt: skip
        (index, newest, offsets, starts_on, token_index, known_on, ids_on, *logit_index, queries, cut_on, start_on) = (
            packed
        )
        positions = batch.positions[newest] + offsets
        input_ids = batch.input_ids[token_index]
        input_ids[known_on] = ids_on.to(input_ids.dtype)
        upper = batch.seq_lens_cpu_upper_bound[torch.from_numpy(requests)] - torch.from_numpy(cut).int()
        queries = queries.to(batch.query_start_loc.dtype)
        sub = replace(
            batch,
            num_reqs=len(requests),
            num_reqs_after_padding=len(requests),
            idx_mapping_np=batch.idx_mapping_np[requests],
            num_scheduled_tokens=stretch.count.astype(batch.num_scheduled_tokens.dtype),
            num_tokens=len(owners),
            num_tokens_after_padding=len(owners),
            query_start_loc=queries,
            query_start_loc_np=query_start_loc,
            # Drafts past the end of the context are read by nobody.
            seq_lens=(batch.seq_lens[index] - cut_on.to(batch.seq_lens.dtype)).clamp(max=max_model_len),
            seq_lens_cpu_upper_bound=upper.clamp(max=max_model_len),
            is_prefilling_np=batch.is_prefilling_np[requests],
            input_ids=input_ids,
            positions=positions.clamp(max=max_model_len - 1),
            prompt_lens=None,
            max_query_len=None,
            fast_prefill=None,
        )
        return SubBatch(
            sub,
            self._own_blocks(block_tables, index, start_on),
            self._slot_mappings(batch.idx_mapping[index], queries, positions + starts_on, max_model_len),
            np.where(self._table.own_prompt[sub.idx_mapping_np, self._member][owners], _NOT_OF_THE_STEP, source),
            logit_index[0],
            logit_index[1],
        )

    def _known(self, requests: np.ndarray, owners: np.ndarray, to_end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens, among the m, that are of own prompts, or had been generated before; and their ids."""
        batch, slots = self._batch, self._batch.idx_mapping_np[requests]
        reading = batch.is_prefilling_np[requests] & self._table.own_prompt[slots, self._member]
        # While it reads its prompt, the host knows where a request is.
        newest = (batch.num_computed_tokens_np[requests] + batch.num_scheduled_tokens[requests] - 1).astype(np.int64)
        positions = (newest - self._shift[requests])[owners] - to_end
        known, ids = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for n in np.flatnonzero(reading):
            sequence = self._table.sequences[slots[n], self._member]
            # vLLM may put places for drafts behind the last token of a prompt.
            tokens = np.flatnonzero((owners == n) & (positions < len(sequence)))
            known.append(tokens)
            ids.append(sequence[positions[tokens]])
        return np.concatenate(known), np.concatenate(ids)

    def _own_blocks(
        self, block_tables: tuple[torch.Tensor, ...], index: torch.Tensor, start: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """[n, blocks] by group: the request's blocks from the member's first one on."""
        own = []
        for blocks, size in zip(block_tables, self._tables.block_sizes, strict=True):
            columns = torch.arange(blocks.shape[1], device=blocks.device) + (start // size)[:, None]
            own.append(blocks[index].gather(1, columns.clamp(max=blocks.shape[1] - 1)))
        return tuple(own)

    def _slot_mappings(
        self, slots: torch.Tensor, queries: torch.Tensor, places: torch.Tensor, max_model_len: int
    ) -> torch.Tensor:
        """[groups, m] where the KV cache of the tokens lies; past the end of what a request may hold, nowhere."""
        number = len(places)
        mappings = torch.empty(self._tables.num_kv_cache_groups, number, dtype=torch.int64, device=places.device)
        inside = places.clamp(max=max_model_len - 1)
        self._tables.compute_slot_mappings(slots, queries, inside, number, out=mappings)
        return mappings.masked_fill_((places >= max_model_len)[None], PAD_SLOT_ID)
