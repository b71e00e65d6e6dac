"""Members that share one model's weights, run as one: the base, its LoRA adapters, and either once more.

In a step their tokens lie one after the other. The layers that know nothing of other tokens run once over all of them,
so weights are read once, however many members there are; each stretch has its own low-rank part (`low_rank`) and goes
through attention layers of its own, which keep its member's KV cache.
"""

# Annotations stay types here: torch makes the operators' schemas of them.
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.forward_context import create_forward_context, get_forward_context, override_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import LinearBase
from vllm.utils.torch_utils import LayerNameType, _encode_layer_name, _resolve_layer_name, direct_register_custom_op
from vllm.v1.kv_cache_interface import KVCacheConfig

from server.engine.low_rank import LIBRARY, LowRankLinear, Product, Span, products_of
from server.engine.member import BuildMetadata, SmallMember
from server.engine.sub_batch import SubBatch
from server.engine.weights import AdapterFiles


class StackedAttention(nn.Module):
    """The attention layers of all members that share the other layers, by their places."""

    def __init__(self, layers: Sequence[Attention], name: str, stack: "Stack") -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._name = name
        self._stack = [stack]  # in a list: it is no part of the model
        self._width = layers[0].num_heads * layers[0].head_size_v

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """What the members' own layers make of their stretches, [m, heads x size]."""
        output = query.new_empty(query.shape[0], self._width)
        torch.ops.logit_fusion.stacked_attention(query, key, value, output, _encode_layer_name(self._name))
        return output

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor) -> None:
        """Write the attention of each stretch."""
        for place, begin, end in self._stack[0].spans:
            output[begin:end] = self.layers[place](query[begin:end], key[begin:end], value[begin:end])


class Stack:
    """The members of one model's weights, and which tokens of the pass that runs are whose."""

    def __init__(self, model: nn.Module, config: VllmConfig, number: int) -> None:
        self.model: Any = model
        self.config = config
        self.places = {number: 0}
        """By the members' numbers."""
        self.spans: Sequence[Span] = ()
        self._attention = [_attention_layers(model)]
        self._adapters: dict[int, AdapterFiles] = {}

    def add(self, number: int, of: int, twin: nn.Module, adapter: Mapping[str, Any] | None) -> None:
        """One more member: the attention layers of a twin, and an adapter's files (`{"adapter": folder, ...}`).

        Without an adapter it is the member `of` of the stack once more.
        """
        place = self.places[number] = len(self._attention)
        self._attention.append(_attention_layers(twin))
        if adapter is not None:
            self._adapters[place] = AdapterFiles(adapter["adapter"], adapter["multimodal"])
        elif (files := self._adapters.get(self.places[of])) is not None:
            self._adapters[place] = files

    def join(self) -> int:
        """Put the members' attention layers and low-rank parts into the model, whose weights are loaded by now.

        Returns:
            How many bytes the low-rank parts take.

        Raises:
            ValueError: an adapter changes what is no linear layer of the model; the message names it.
        """
        dtype: Any = self.config.model_config.dtype
        modules = dict(self.model.named_modules())
        static = self.config.compilation_config.static_forward_context
        for name, own in self._attention[0].items():
            layer_name = f"{own.layer_name}.stacked"
            layers = [members[name] for members in self._attention]
            static[layer_name] = stacked = StackedAttention(layers, layer_name, self)
            _replace(modules, name, stacked)
            prefix = own.layer_name.removesuffix(name)
        taken = 0
        for name, of_layer in self._products().items():
            layer_name = f"{prefix}{name}.low_rank"
            static[layer_name] = low_rank = LowRankLinear(modules[name], layer_name, lambda: self.spans)
            low_rank.fill(of_layer, len(self._attention), dtype)
            taken += sum(held.numel() * held.element_size() for held in low_rank.buffers(recurse=False))
            _replace(modules, name, low_rank)
        return taken

    def _products(self) -> dict[str, dict[int, list[Product]]]:
        """What the adapters add, by the name of the model's layer and their place."""
        found: dict[str, dict[int, list[Product]]] = {}
        for place, adapter in self._adapters.items():
            for name, product in products_of(adapter.changes, adapter.read):
                layer, part = _placed(self.model, name)
                found.setdefault(layer, {}).setdefault(place, []).append(product._replace(part=part))
        return found

    def run(
        self, runs: Sequence[tuple["StackedMember", SubBatch]], build: BuildMetadata, kv_cache_config: KVCacheConfig
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
        self, runs: Sequence[tuple["StackedMember", SubBatch]], build: BuildMetadata, kv_cache_config: KVCacheConfig
    ) -> list[torch.Tensor]:
        metadata: dict[str, Any] = {}
        slot_mapping: dict[str, torch.Tensor] = {}
        lengths = [sub.batch.num_tokens for _, sub in runs]
        for member, sub in runs:
            metadata |= member.attention_metadata(sub, build, kv_cache_config)
            slot_mapping |= member.slot_mapping(sub)
        ids = torch.cat([member.known(sub.batch.input_ids) for member, sub in runs])
        positions = torch.cat([sub.batch.positions for _, sub in runs], dim=-1)
        ends = torch.tensor(lengths).cumsum(0).tolist()
        self.spans = [
            Span(member.place, end - length, end) for (member, _), length, end in zip(runs, lengths, ends, strict=True)
        ]
        context = create_forward_context(metadata, self.config, slot_mapping=slot_mapping)
        with override_forward_context(context):
            states: torch.Tensor = self.model(ids, positions)
        return list(torch.split(states, lengths))


class StackedMember(SmallMember):
    """A member of a stack."""

    def __init__(self, prefix: str, stack: Stack, place: int, config: VllmConfig, last_id: int | None) -> None:
        super().__init__(prefix, stack.model, config, last_id)
        self.stack = stack
        self.place = place

    def _call(self, input_ids: torch.Tensor, positions: torch.Tensor, metadata: Any, slot_mapping: Any) -> torch.Tensor:
        self.stack.spans = [Span(self.place, 0, input_ids.shape[0])]
        return super()._call(input_ids, positions, metadata, slot_mapping)


def _attention_layers(model: nn.Module) -> dict[str, Attention]:
    """The attention layers of a model, by their names in it."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Attention)}


def _placed(model: nn.Module, name: str) -> tuple[str, int]:
    """A checkpoint's module as the model has it: its name there, and which part of that it is.

    Raises:
        ValueError: it is none of the model's linear layers; the message names it.
    """
    parent, _, own = name.rpartition(".")
    found, part = name, 0
    for packed, parts in getattr(model, "packed_modules_mapping", {}).items():
        if own in parts and len(parts) > 1:
            found, part = f"{parent}.{packed}", parts.index(own)
    modules = dict(model.named_modules())
    if not isinstance(modules.get(found), LinearBase):
        raise ValueError(name)
    return found, part


def _replace(modules: Mapping[str, nn.Module], name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(modules[parent], own, module)


def _stacked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor, layer_name: LayerNameType
) -> None:
    layer = get_forward_context().no_compile_layers[_resolve_layer_name(layer_name)]
    layer.attend(query, key, value, output)


def _stacked_attention_fake(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor, layer_name: LayerNameType
) -> None:
    return


direct_register_custom_op(
    "stacked_attention",
    _stacked_attention,
    mutates_args=["output"],
    fake_impl=_stacked_attention_fake,
    target_lib=LIBRARY,
)
