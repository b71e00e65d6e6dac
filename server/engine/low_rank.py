"""LoRA beside weights that it shares: each stretch of a pass' tokens with the low-rank part of its own member.

    y = W x + s B_k (A_k x)     for the tokens x of member k          Hu et al. 2021, arXiv 2106.09685

Base and adapters read W once for all of their tokens (`server.engine.stack`). Nothing is rounded to the weights' format
beside W, so a small change of a large weight is kept where merging it in bfloat16 would lose it.
"""

# Annotations stay types here: torch makes the operator's schema of them.

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.linear import ColumnParallelLinear, LinearBase, RowParallelLinear
from vllm.utils.torch_utils import LayerNameType, _encode_layer_name, _resolve_layer_name, direct_register_custom_op

from server.engine.adapter import Change


class Span(NamedTuple):
    """The tokens of a pass, from `begin` to before `end`, that are one member's."""

    place: int
    """The member's, among those that share the weights: 0 has them as they are."""
    begin: int
    end: int


class Product(NamedTuple):
    """What one adapter adds to one part of a layer: B A, in float32, B scaled."""

    part: int
    """Of a layer that is several of the checkpoint's at once, which one."""
    down: torch.Tensor
    """A [rank, in]."""
    up: torch.Tensor
    """s B [out, rank]."""


class LowRankLinear(nn.Module):
    """A linear layer of vLLM's, and what adapters add to it."""

    def __init__(self, base_layer: LinearBase, name: str, spans: Callable[[], Sequence[Span]]) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._name = name
        self._spans = spans
        # Where the layer leaves its sum to the block around it (Cohere's do), so do the adapters.
        sums = isinstance(base_layer, RowParallelLinear) and base_layer.reduce_results
        self._summed = sums and base_layer.tp_size > 1
        self.down: torch.Tensor
        """[places, parts x rank, in]."""
        self.ups: dict[int, tuple[int, int, torch.Tensor]] = {}
        """By part: the layer's columns from where to where, and [places, out, rank]."""

    def __getattr__(self, name: str) -> Any:
        """What models read off their layers, such as the widths by which they split an output."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    def make_room(self, places: int, parts: Sequence[int], rank: int, dtype: torch.dtype) -> None:
        """Make room for adapters of up to `rank` in these parts of the layer, for members at so many places."""
        layer: Any = self.base_layer
        sizes = [int(size) for size in layer.output_partition_sizes]
        width = int(layer.input_size)
        if isinstance(layer, RowParallelLinear):
            sizes, width = [int(layer.output_size)], int(layer.input_size_per_partition)
        held: dict[str, Any] = {"dtype": dtype, "device": next(iter(layer.parameters())).device}
        self.register_buffer("down", torch.zeros(places, len(parts) * rank, width, **held), persistent=False)
        for part in parts:
            start = sum(sizes[:part])
            self.register_buffer(f"up{part}", torch.zeros(places, sizes[part], rank, **held), persistent=False)
            self.ups[part] = start, start + sizes[part], getattr(self, f"up{part}")

    def put(self, place: int, products: Sequence[Product]) -> None:
        """Make these the products of the member at a place, in the memory of those that it had.

        CUDA graphs read that memory, and requests of other members need not wait.
        """
        self.down[place].zero_()
        for _, _, up in self.ups.values():
            up[place].zero_()
        parts = list(self.ups)
        for product in products:
            start, stop, up = self.ups[product.part]
            first, own = parts.index(product.part) * up.shape[-1], len(product.down)
            self.down[place, first : first + own] = _shard_in(self.base_layer, product.down)
            up[place, :, :own] = _shard_out(self.base_layer, product.up, stop - start)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's own result, and in its first tensor the adapters' parts."""
        result = self.base_layer(x, *args, **kwargs)
        output = result[0] if isinstance(result, tuple) else result
        torch.ops.logit_fusion.low_rank(x, output, _encode_layer_name(self._name))
        return result

    def add(self, x: torch.Tensor, output: torch.Tensor) -> None:
        """Add each stretch's part to the layer's output [m, out] of x [m, in]; before m there may be a 1."""
        x, output = x.view(-1, x.shape[-1]), output.view(-1, output.shape[-1])
        for first, members, begin, end in _alike(self._spans()):
            places = slice(first, first + members)
            inner = torch.bmm(x[begin:end].view(members, -1, x.shape[-1]), self.down[places].transpose(1, 2))
            if self._summed:
                inner = tensor_model_parallel_all_reduce(inner)
            wide = output[begin:end].view(members, -1, output.shape[-1])
            rank = inner.shape[-1] // len(self.ups)
            for number, (start, stop, up) in enumerate(self.ups.values()):
                own = inner[..., number * rank : (number + 1) * rank]
                wide[..., start:stop].baddbmm_(own, up[places].transpose(1, 2))


def install(low_rank: LowRankLinear, layer_name: str, model: nn.Module, name: str, config: VllmConfig) -> int:
    """Put a layer that has its room into a model, in the place of the layer `name` that it is made of.

    Returns:
        How many bytes its buffers take.
    """
    config.compilation_config.static_forward_context[layer_name] = low_rank
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, low_rank)
    return sum(held.numel() * held.element_size() for held in low_rank.buffers(recurse=False))


def placed_products(
    model: nn.Module, changes: Mapping[str, Change], read: Callable[[str], torch.Tensor]
) -> dict[str, list[Product]]:
    """What an adapter adds, by the name of the model's layer; `read` returns a tensor of the adapter's by its name.

    Raises:
        ValueError: it changes what is no linear layer of the model; the message names it.
    """
    found: dict[str, list[Product]] = {}
    for tensor, change in changes.items():
        down, up = read(change.parts["down"]).float(), read(change.parts["up"]).float()
        layer, part = _placed(model, tensor.removesuffix(".weight"))
        found.setdefault(layer, []).append(Product(part, down, change.scaling * up))
    return found


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
    if not isinstance(modules.get(found), LinearBase | LowRankLinear):
        raise ValueError(name)
    return found, part


def _alike(spans: Sequence[Span]) -> Iterator[tuple[int, int, int, int]]:
    """(first place, number of places, begin, end) of neighbours in place and tokens that have as many tokens each."""
    group: list[Span] = []
    for span in spans:
        if span.place == 0:
            continue
        last = group[-1] if group else None
        if last is not None and (span.place, span.begin, span.end - span.begin) != (
            last.place + 1,
            last.end,
            last.end - last.begin,
        ):
            yield group[0].place, len(group), group[0].begin, group[-1].end
            group = []
        group.append(span)
    if group:
        yield group[0].place, len(group), group[0].begin, group[-1].end


def _shard_in(layer: Any, down: torch.Tensor) -> torch.Tensor:
    """The columns of A that read this rank's part of the input."""
    if not isinstance(layer, RowParallelLinear):
        return down
    size = down.shape[1] // layer.tp_size
    return down[:, layer.tp_rank * size : (layer.tp_rank + 1) * size]


def _shard_out(layer: Any, up: torch.Tensor, size: int) -> torch.Tensor:
    """The rows of B that make this rank's part of the output; ranks share one where there are fewer of them."""
    if not isinstance(layer, ColumnParallelLinear):
        return up
    shard = layer.tp_rank * (up.shape[0] // size) // layer.tp_size
    return up[shard * size : (shard + 1) * size]


def _low_rank(x: torch.Tensor, output: torch.Tensor, layer_name: LayerNameType) -> None:
    get_forward_context().no_compile_layers[_resolve_layer_name(layer_name)].add(x, output)


def _low_rank_fake(x: torch.Tensor, output: torch.Tensor, layer_name: LayerNameType) -> None:
    return


_LIBRARY = torch.library.Library("logit_fusion", "FRAGMENT")  # type: ignore[no-untyped-call]
direct_register_custom_op("low_rank", _low_rank, mutates_args=["output"], fake_impl=_low_rank_fake, target_lib=_LIBRARY)
