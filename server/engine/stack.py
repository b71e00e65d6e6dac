"""Members that share one model's weights, run as one: the base, its LoRA adapters, and either once more.

In a step their tokens lie in one batch, in which a request stands once for each of its members. The model runs once
over all of them, so weights are read once, however many members there are; `low_rank` adds each stretch's own part.

Each member keeps its KV cache in attention layers of its own, as vLLM gives every layer room. All layers lie in one
allocation, block after block: to the model's own layer, a block of another member's is one further on. So what makes a
request of the batch a member's is which blocks it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import CacheConfig, VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import LinearBase
from vllm.v1.kv_cache_interface import KVCacheConfig

from server.engine.adapter import LINEAR
from server.engine.low_rank import LowRankLinear, Product, Span, install, placed_products
from server.engine.member import AttentionGroups, BuildMetadata, SmallMember
from server.engine.sub_batch import SubBatch, joined
from server.engine.weights import AdapterFiles


class Stack:
    """The members of one model's weights, and which tokens of the pass that runs are whose."""

    def __init__(
        self, prefix: str, model: nn.Module, config: VllmConfig, number: int, last_id: int | None, spare_rank: int
    ) -> None:
        self.model: Any = model
        self.config = config
        self.prefix = prefix
        self.last_id = last_id
        self.places = {number: 0}
        """By the members' numbers."""
        self.spans: Sequence[Span] = ()
        self._attention = [_attention_layers(model)]
        self._adapters: dict[int, AdapterFiles] = {}
        self._spare_rank = spare_rank
        """Of adapters that may be loaded while the engine runs; 0 where none may."""
        self._low_rank: dict[str, LowRankLinear] = {}
        self._shifts: list[list[tuple[int, int]]] = []
        self._whole: SmallMember | None = None

    def add(self, number: int, of: int, twin: nn.Module, adapter: Mapping[str, Any] | None) -> None:
        """One more member: the attention layers of a twin, and an adapter's files (`{"adapter": folder, ...}`).

        Without a folder the adapter comes later (`put`); without an adapter it is the member `of` once more.
        """
        place = self.places[number] = len(self._attention)
        self._attention.append(_attention_layers(twin))
        if adapter is not None and adapter["adapter"] is not None:
            self._adapters[place] = AdapterFiles(adapter["adapter"], adapter["multimodal"])
        elif (files := self._adapters.get(self.places[of])) is not None:
            self._adapters[place] = files

    def join(self) -> int:
        """Put the low-rank parts into the model, whose weights are loaded by now.

        Returns:
            How many bytes they take.

        Raises:
            ValueError: an adapter changes what is no linear layer of the model; the message names it.
        """
        dtype: Any = self.config.model_config.dtype
        modules = dict(self.model.named_modules())
        products = {place: self.products(adapter) for place, adapter in self._adapters.items()}
        taken = 0
        for name, (parts, rank) in self._rooms(products).items():
            layer_name = f"{self.prefix}{name}.low_rank"
            low_rank = LowRankLinear(modules[name], layer_name, lambda: self.spans)
            low_rank.make_room(len(self._attention), parts, rank, dtype)
            taken += install(low_rank, layer_name, self.model, name, self.config)
            self._low_rank[name] = low_rank
        for place, by_layer in products.items():
            self._put(place, by_layer)
        return taken

    def put(self, number: int, products: Mapping[str, Sequence[Product]]) -> None:
        """Make an adapter's products (`placed_products`) those of a member, which no request uses."""
        self._put(self.places[number], products)

    def _put(self, place: int, products: Mapping[str, Sequence[Product]]) -> None:
        for name, low_rank in self._low_rank.items():
            low_rank.put(place, products.get(name, ()))

    def products(self, adapter: AdapterFiles) -> dict[str, list[Product]]:
        """What an adapter adds, by the name of the model's layer: read from its files into memory.

        Raises:
            ValueError: it changes what is no linear layer of the model; the message names it.
        """
        return placed_products(self.model, adapter.changes, adapter.read)

    def _rooms(self, products: Mapping[int, Mapping[str, Sequence[Product]]]) -> dict[str, tuple[list[int], int]]:
        """Parts and rank of each layer that an adapter changes, or that one which is loaded later may change."""
        parts: dict[str, set[int]] = {}
        ranks: dict[str, int] = {}
        if self._spare_rank:
            for name, module in self.model.named_modules():
                if isinstance(module, LinearBase) and (found := _parts(self.model, name)):
                    parts[name], ranks[name] = found, self._spare_rank
        for by_layer in products.values():
            for name, of_layer in by_layer.items():
                parts.setdefault(name, set()).update(product.part for product in of_layer)
                ranks[name] = max(ranks.get(name, 0), *(len(product.down) for product in of_layer))
        return {name: (sorted(found), ranks[name]) for name, found in parts.items()}

    def bind(self, kv_cache_config: KVCacheConfig) -> None:
        """Have the model's attention layers see the blocks of all members; vLLM has given each layer its own by now.

        Raises:
            NotImplementedError: the members' blocks do not lie one after the other.
        """
        self._shifts = [[(0, 0)] * len(kv_cache_config.kv_cache_groups) for _ in self._attention]
        for number, group in enumerate(kv_cache_config.kv_cache_groups):
            known: list[tuple[int, int]] | None = None
            for name, own in self._attention[0].items():
                if own.layer_name not in group.layer_names:
                    continue
                caches = [layers[name].kv_cache for layers in self._attention]
                own.kv_cache, shifts = _as_one(caches)
                if getattr(own.impl, "_k_scale_cache", None) is not None or known not in (None, shifts):
                    raise NotImplementedError(
                        "adapters share the base's weights only where the KV cache lies layer after layer and is not "
                        "quantised by token; leave out engine.kv_cache_dtype and VLLM_KV_CACHE_LAYOUT"
                    )
                known = shifts
            for place, shift in enumerate(known or ()):
                self._shifts[place][number] = shift

    def take_groups(self, attn_groups: AttentionGroups, cache_config: CacheConfig, device: torch.device) -> None:
        """Make what runs several members at once, unless it is made (`SmallMember.take_groups`)."""
        if self._whole is None:
            config = copy(self.config)
            # Builders keep room for as many requests; here each may stand once for every member.
            config.scheduler_config = copy(config.scheduler_config)
            config.scheduler_config.max_num_seqs *= len(self._attention)
            self._whole = SmallMember(self.prefix, self.model, config, self.last_id)
        self._whole.take_groups(attn_groups, cache_config, device)

    def forget(self) -> None:
        """There is another KV cache (`SmallMember.forget`)."""
        self._whole = None

    def of_place(self, place: int, sub: SubBatch) -> SubBatch:
        """A sub-batch with the blocks named as the model's layers know them."""
        tables, mappings = [], []
        shifts = self._shifts[place]
        for (blocks, slots), table, mapping in zip(shifts, sub.block_tables, sub.slot_mappings, strict=True):
            tables.append(table + blocks)
            mappings.append(torch.where(mapping >= 0, mapping + slots, mapping))
        return replace(sub, block_tables=tuple(tables), slot_mappings=torch.stack(mappings))

    def run(
        self, runs: Sequence[tuple[StackedMember, SubBatch]], build: BuildMetadata, kv_cache_config: KVCacheConfig
    ) -> list[torch.Tensor]:
        """Hidden states [m, width] of each member's sub-batch, in passes of as many tokens as a step may have."""
        if len(runs) == 1:
            member, sub = runs[0]
            return [member.run(sub, build, kv_cache_config)]
        # CUDA graphs have one member each: of two, base and adapter, their replays cost less than they read twice.
        if len(runs) == 2 and all(member.has_graph(sub) for member, sub in runs):
            return [member.run(sub, build, kv_cache_config).clone() for member, sub in runs]
        most_tokens = self.config.scheduler_config.max_num_batched_tokens
        found: list[torch.Tensor] = []
        while rest := runs[len(found) :]:
            number, tokens = 1, rest[0][1].batch.num_tokens
            while number < len(rest) and tokens + rest[number][1].batch.num_tokens <= most_tokens:
                tokens += rest[number][1].batch.num_tokens
                number += 1
            found += self._run(rest[:number], build, kv_cache_config)
        return found

    def _run(
        self, runs: Sequence[tuple[StackedMember, SubBatch]], build: BuildMetadata, kv_cache_config: KVCacheConfig
    ) -> list[torch.Tensor]:
        assert self._whole is not None
        subs = [self.of_place(member.place, sub) for member, sub in runs]
        whole, order = joined(subs)
        places = np.repeat([member.place for member, _ in runs], [sub.batch.num_reqs for sub in subs])
        self.spans = _spans(places[order.requests], whole.batch.num_scheduled_tokens)
        states = order.back(self._whole.run(whole, build, kv_cache_config))
        return list(torch.split(states, [sub.batch.num_tokens for sub in subs]))


class StackedMember(SmallMember):
    """A member of a stack."""

    def __init__(self, stack: Stack, place: int, config: VllmConfig) -> None:
        super().__init__(stack.prefix, stack.model, config, stack.last_id)
        self.stack = stack
        self.place = place

    def run(self, sub: SubBatch, build: BuildMetadata, kv_cache_config: KVCacheConfig) -> torch.Tensor:
        """See `SmallMember.run`."""
        return super().run(self.stack.of_place(self.place, sub), build, kv_cache_config)

    def take_groups(self, attn_groups: AttentionGroups, cache_config: CacheConfig, device: torch.device) -> None:
        """See `SmallMember.take_groups`."""
        super().take_groups(attn_groups, cache_config, device)
        self.stack.take_groups(attn_groups, cache_config, device)

    def forget(self) -> None:
        """See `SmallMember.forget`."""
        super().forget()
        self.stack.forget()

    def _call(self, input_ids: torch.Tensor, positions: torch.Tensor, metadata: Any, slot_mapping: Any) -> torch.Tensor:
        self.stack.spans = [Span(self.place, 0, input_ids.shape[0])]
        return super()._call(input_ids, positions, metadata, slot_mapping)


def _as_one(caches: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """A view of the blocks of several layers as one layer's, and of each how many blocks and tokens it begins later.

    Raises:
        NotImplementedError: their blocks do not lie one after the other.
    """
    first = min(caches, key=lambda cache: cache.data_ptr())
    block = first.stride(0) * first.element_size()
    distances = [cache.data_ptr() - first.data_ptr() for cache in caches]
    alike = all(cache.stride() == first.stride() and cache.shape == first.shape for cache in caches)
    if not alike or any(distance % block for distance in distances):
        raise NotImplementedError("the members' layers of the KV cache do not lie one after the other")
    shifts = [distance // block for distance in distances]
    size = (max(shifts) + first.shape[0], *first.shape[1:])
    whole = torch.as_strided(first, size, first.stride(), first.storage_offset())
    return whole, [(shift, shift * first.shape[2]) for shift in shifts]


def _spans(places: np.ndarray, lengths: np.ndarray) -> list[Span]:
    """Whose tokens lie where, of requests [n] in their order."""
    ends = np.cumsum(lengths)
    spans: list[Span] = []
    for place, end, length in zip(places.tolist(), ends.tolist(), lengths.tolist(), strict=True):
        if spans and spans[-1].place == place:
            spans[-1] = spans[-1]._replace(end=end)
        else:
            spans.append(Span(place, end - length, end))
    return spans


def _attention_layers(model: nn.Module) -> dict[str, Attention]:
    """The attention layers of a model, by their names in it."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Attention)}


def _parts(model: nn.Module, name: str) -> set[int]:
    """The parts of a layer that an adapter may change: those of the checkpoint's names that are `LINEAR`."""
    parent, _, own = name.rpartition(".")
    parts = getattr(model, "packed_modules_mapping", {}).get(own, [own])
    return {number for number, part in enumerate(parts) if LINEAR.search(f"{parent}.{part}.weight")}
