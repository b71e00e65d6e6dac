"""One small member of the composite at work: it runs on its own sub-batch, in a forward context of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from vllm.config import CacheConfig, VllmConfig, set_current_vllm_config
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import create_forward_context, override_forward_context
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.utils import AttentionGroup

from server.engine.member_graphs import MemberGraphs
from server.engine.sub_batch import SubBatch

RESOLVED_LATE = ("kv_cache_layout", "block_size", "num_gpu_blocks", "hash_block_size")
"""What vLLM 0.32 puts into its cache configuration after the models are built, and attention backends read there."""

AttentionGroups = list[list[AttentionGroup]]
BuildMetadata = Callable[[SubBatch, AttentionGroups, KVCacheConfig, CUDAGraphMode, bool], dict[str, Any]]
"""Attention metadata by layer of a sub-batch, for some groups, in a graph mode, to be captured or not."""


class SmallMember:
    """The base or an expert: its model, the attention groups of its layers, and its CUDA graphs.

    Layers whose attention is alike share one metadata builder in vLLM's model runner, and a builder may keep what it
    built in buffers of its own (FlashAttention 3's schedule, FlashInfer's plan): a second build, for another
    sub-batch, would overwrite the first before it is read. So each member has builders of its own, made with its own
    configuration.
    """

    def __init__(self, prefix: str, model: nn.Module, config: VllmConfig, last_id: int | None) -> None:
        self.prefix = prefix
        self.model: Any = model
        self.config = config
        self.last_id = last_id
        """The member's last token id, where its vocabulary is shorter than the large model's; else `None`."""
        self._groups: AttentionGroups | None = None
        self._graphs: list[MemberGraphs] = []
        self._metadata: dict[str, Any] = {}

    def forget(self) -> None:
        """The model runner has another KV cache and other attention groups: what was made for the old ones goes."""
        self._groups, self._graphs, self._metadata = None, [], {}

    def take_groups(self, attn_groups: AttentionGroups, cache_config: CacheConfig, device: torch.device) -> None:
        """Make the member's own attention groups from the model runner's, unless they are made.

        `cache_config` is the engine's, which knows by now how the KV cache is laid out.
        """
        if self._groups is not None:
            return
        for name in RESOLVED_LATE:
            setattr(self.config.cache_config, name, getattr(cache_config, name))
        # Some builders ask for the configuration that is in force.
        with set_current_vllm_config(self.config):
            self._groups = [
                [self._own_group(group, device) for group in groups if self._layers(group)] for groups in attn_groups
            ]

    def run(self, sub: SubBatch, build: BuildMetadata, kv_cache_config: KVCacheConfig) -> torch.Tensor:
        """Hidden states [m, width] of the sub-batch's m tokens, in memory that may be written again."""
        for graphs in self._graphs:
            if (graph := graphs.graph_for(sub)) is not None:
                return graphs.run(sub, graph)
        self._metadata = self.attention_metadata(sub, build, kv_cache_config)
        return self._forward(sub)

    def has_graph(self, sub: SubBatch) -> bool:
        """Whether a captured graph runs a sub-batch like this."""
        return any(graphs.graph_for(sub) is not None for graphs in self._graphs)

    def attention_metadata(self, sub: SubBatch, build: BuildMetadata, kv_cache_config: KVCacheConfig) -> dict[str, Any]:
        """Attention metadata of the sub-batch by layer, for a pass without graphs."""
        assert self._groups is not None
        return build(sub, self._groups, kv_cache_config, CUDAGraphMode.NONE, False)

    def slot_mapping(self, sub: SubBatch) -> dict[str, torch.Tensor]:
        """[m] by layer: where the KV cache of the sub-batch's tokens lies."""
        assert self._groups is not None
        return {
            name: mapping
            for groups, mapping in zip(self._groups, sub.slot_mappings, strict=True)
            for group in groups
            for name in group.layer_names
        }

    def known(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Ids that the member has: a prompt of raw ids, or an id sampled from the large model's padding, may not be."""
        return input_ids if self.last_id is None else input_ids.clamp(max=self.last_id)

    def profile(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Hidden states [m, width] of tokens that belong to no request, without a KV cache."""
        return self._call(input_ids, positions, None, None)

    def capture(
        self,
        build: BuildMetadata,
        decode_query_lens: list[int],
        block_tables: BlockTables,
        kv_cache_config: KVCacheConfig,
    ) -> None:
        """Capture the CUDA graphs over this KV cache, in the place of those that there are.

        There are graphs for steps in which every request has so many tokens as one of `decode_query_lens` says.
        """
        self._graphs, groups = [], self._groups
        assert groups is not None

        def build_for_graph(sub: SubBatch, for_capture: bool) -> None:
            # vLLM's runner captures with mode NONE and replays with FULL; the sizes are the padded ones in both.
            mode = CUDAGraphMode.NONE if for_capture else CUDAGraphMode.FULL
            self._metadata = build(sub, groups, kv_cache_config, mode, for_capture)

        for length in decode_query_lens:
            self._graphs.append(MemberGraphs(self.config, length, block_tables, build_for_graph, self._forward))

    def _forward(self, sub: SubBatch) -> torch.Tensor:
        """Run over a sub-batch whose metadata is built."""
        return self._call(sub.batch.input_ids, sub.batch.positions, self._metadata, self.slot_mapping(sub))

    def _call(self, input_ids: torch.Tensor, positions: torch.Tensor, metadata: Any, slot_mapping: Any) -> torch.Tensor:
        context = create_forward_context(metadata, self.config, slot_mapping=slot_mapping)
        with override_forward_context(context):
            states: torch.Tensor = self.model(self.known(input_ids), positions)
        return states

    def _own_group(self, group: AttentionGroup, device: torch.device) -> AttentionGroup:
        own = replace(group, layer_names=self._layers(group), metadata_builders=[])
        own.create_metadata_builders(self.config, device, group.kernel_block_size)
        # FlashInfer's workspace has hundreds of megabytes; what shares it runs on one stream, one after another.
        for theirs, builder in zip(group.metadata_builders, own.metadata_builders, strict=False):
            if hasattr(builder, "set_workspace_buffer") and hasattr(theirs, "_get_workspace_buffer"):
                builder.set_workspace_buffer(theirs._get_workspace_buffer())
        return own

    def _layers(self, group: AttentionGroup) -> list[str]:
        return [name for name in group.layer_names if name.startswith(self.prefix)]
