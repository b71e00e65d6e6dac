"""CUDA graphs of one small member: its whole forward pass over a decode sub-batch, captured once for each size.

A graph reads and writes fixed addresses, so the member has input buffers of its own. Before a replay the sub-batch is
copied into them and padded to the size of the graph, as vLLM's model runner does for the large model.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.attention.backends.utils import PAD_SLOT_ID
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers

from server.engine.sub_batch import SubBatch

Forward = Callable[[SubBatch], torch.Tensor]
"""Runs the member over a sub-batch whose attention metadata is built; hidden states [m, width]."""
Build = Callable[[SubBatch, bool], None]
"""Builds the attention metadata of a padded sub-batch for a graph, to be captured (true) or replayed."""


class MemberGraphs:
    """The graphs of one member, captured when they are made.

    Raises:
        RuntimeError: a graph cannot be captured.
    """

    def __init__(
        self, config: VllmConfig, decode_query_len: int, block_tables: BlockTables, build: Build, forward: Forward
    ) -> None:
        device = block_tables.device
        # Of this query length alone: with what speculation makes of it, vLLM would capture all of them each time.
        config = copy(config)
        config.speculative_config = None
        self._query_len = decode_query_len
        self._build, self._forward = build, forward
        self._manager = CudaGraphManager(config, device, CUDAGraphMode.FULL_DECODE_ONLY, decode_query_len)
        scheduler = config.scheduler_config
        # No graph is larger than the largest size that the user has graphs captured for.
        tokens = min(config.compilation_config.max_cudagraph_capture_size or 0, scheduler.max_num_batched_tokens)
        self._inputs = InputBuffers(scheduler.max_num_seqs, tokens, device)
        self._block_tables = tuple(torch.zeros_like(table) for table in block_tables.input_block_tables)
        self._slot_mappings = torch.full(
            (len(self._block_tables), tokens), PAD_SLOT_ID, dtype=torch.int64, device=device
        )
        self._hidden: torch.Tensor | None = None
        self._staged: SubBatch | None = None
        if self._manager.needs_capture():
            self._manager.capture(self._create_forward, progress_bar_desc="Capturing a member's CUDA graphs")

    def graph_for(self, sub: SubBatch) -> BatchExecutionDescriptor | None:
        """The graph that a sub-batch fits, `None` where there is none: a prompt is read, or it is too large."""
        batch = sub.batch
        lengths = batch.num_scheduled_tokens
        if batch.is_prefilling_np.any() or not (lengths == self._query_len).all():
            return None
        graph = self._manager.dispatch(batch.num_reqs, batch.num_tokens, self._query_len, 0)
        return graph if graph.cg_mode is CUDAGraphMode.FULL else None

    def run(self, sub: SubBatch, graph: BatchExecutionDescriptor) -> torch.Tensor:
        """Hidden states [m, width] of the sub-batch's m tokens, in memory that the next replay writes again."""
        self._staged = self._stage(sub, graph)
        self._build(self._staged, False)
        self._manager.run_fullgraph(graph)
        assert self._hidden is not None
        return self._hidden[: sub.batch.num_tokens]

    def _create_forward(self, desc: BatchExecutionDescriptor, warmup: bool) -> Callable[[CUDAGraphMode], None]:
        tokens, requests = desc.num_tokens, desc.num_reqs
        assert requests is not None
        dummy = InputBatch.make_dummy(requests, tokens, self._inputs, max_query_len=desc.uniform_token_count)
        for table in self._block_tables:
            table.zero_()
        self._slot_mappings.fill_(PAD_SLOT_ID)
        self._staged = self._padded(dummy, requests, tokens)
        self._build(self._staged, True)

        def forward(mode: CUDAGraphMode) -> None:
            assert self._staged is not None
            states = self._forward(self._staged)
            if self._hidden is None:
                self._hidden = states.new_zeros(self._inputs.max_num_tokens, states.shape[1])
            self._hidden[:tokens] = states

        return forward

    def _stage(self, sub: SubBatch, graph: BatchExecutionDescriptor) -> SubBatch:
        """Copy a sub-batch into the member's buffers, padded to a graph's size."""
        batch, inputs = sub.batch, self._inputs
        n, m, requests, tokens = batch.num_reqs, batch.num_tokens, graph.num_reqs, graph.num_tokens
        assert requests is not None
        inputs.input_ids[:m] = batch.input_ids
        inputs.positions[:m] = batch.positions
        inputs.query_start_loc[: n + 1] = batch.query_start_loc
        inputs.seq_lens[:n] = batch.seq_lens
        for own, table in zip(self._block_tables, sub.block_tables, strict=True):
            own[:n] = table
        self._slot_mappings[:, :m] = sub.slot_mappings
        # What pads reads nothing and writes nowhere.
        inputs.input_ids[m:tokens] = 0
        inputs.positions[m:tokens] = 0
        inputs.query_start_loc[n + 1 : requests + 1] = m
        inputs.seq_lens[n:requests] = 0
        for own in self._block_tables:
            own[n:requests] = 0
        self._slot_mappings[:, m:tokens] = PAD_SLOT_ID
        return self._padded(batch, requests, tokens)

    def _padded(self, batch: InputBatch, requests: int, tokens: int) -> SubBatch:
        inputs = self._inputs
        starts = np.full(requests + 1, batch.num_tokens, dtype=np.int32)
        starts[: batch.num_reqs + 1] = batch.query_start_loc_np[: batch.num_reqs + 1]
        lengths = torch.zeros(requests, dtype=torch.int32, device="cpu")
        lengths[: batch.num_reqs] = batch.seq_lens_cpu_upper_bound[: batch.num_reqs]
        padded = replace(
            batch,
            num_reqs_after_padding=requests,
            num_tokens_after_padding=tokens,
            input_ids=inputs.input_ids[:tokens],
            positions=inputs.positions[:tokens],
            query_start_loc=inputs.query_start_loc[: requests + 1],
            query_start_loc_np=starts,
            seq_lens=inputs.seq_lens[:requests],
            seq_lens_cpu_upper_bound=lengths,
        )
        tables = tuple(table[:requests] for table in self._block_tables)
        return SubBatch(padded, tables, self._slot_mappings[:, :tokens], None, None, None)
