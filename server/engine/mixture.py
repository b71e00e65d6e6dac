"""An expert that is a mixture for each request: shared weights, and low-rank parts weighed by a router.

    y = W x + sum_t g_t B_t (A_t x),  g_t = p_t / sum of the chosen parts' p    Lu et al. 2024, arXiv 2406.15479

W is what experts have in common (a merge), B_t A_t what expert t has beyond it, and p the router's probabilities of the
parts that it chose. Every token of a pass carries the shares g of its own request, so as many mixtures live at once as
there are requests, in one pass over W. Without a router all shares are 0, and the expert is W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.utils import torch_utils
from vllm.v1.kv_cache_interface import KVCacheConfig

from server.engine.low_rank import LowRankLinear, Product, install, placed_products
from server.engine.member import BuildMetadata, SmallMember
from server.engine.sub_batch import SubBatch
from server.engine.weights import AdapterFiles


class MixedLinear(LowRankLinear):
    """A linear layer of vLLM's, and the parts that a mixture adds to it."""

    def __init__(self, base_layer: Any, name: str, mixture: MixtureMember) -> None:
        super().__init__(base_layer, name, lambda: ())
        self._mixture = mixture
        self._part_of: torch.Tensor
        """[rank] int64: whose each row of A is."""

    def put_parts(self, by_part: Sequence[Sequence[Product]], dtype: torch.dtype) -> None:
        """Make room for the parts' products, and take them in."""
        ranks = [max((len(product.down) for product in products), default=0) for products in by_part]
        rows = {product.part for products in by_part for product in products}
        self.make_room(1, sorted(rows), sum(ranks), dtype)
        device = self.down.device
        self._part_of = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks)).to(device)
        whole = []
        for row in sorted(rows):
            # Whatever a part leaves alone here keeps its columns, empty.
            found = [next((each for each in products if each.part == row), None) for products in by_part]
            present = next(product for product in found if product is not None)
            downs, ups = [], []
            for product, rank in zip(found, ranks, strict=True):
                down = present.down.new_zeros(rank, present.down.shape[1])
                up = present.up.new_zeros(present.up.shape[0], rank)
                if product is not None:
                    down[: len(product.down)], up[:, : len(product.down)] = product.down, product.up
                downs.append(down)
                ups.append(up)
            whole.append(Product(row, torch.cat(downs), torch.cat(ups, dim=1)))
        self.put(0, whole)

    def add(self, x: torch.Tensor, output: torch.Tensor) -> None:
        """Add the parts of each token's own mixture to the layer's output [m, out] of x [m, in]."""
        inner = x @ self.down[0].T
        if self._summed:
            inner = tensor_model_parallel_all_reduce(inner)
        shares = self._mixture.shares[:, self._part_of]
        rank = shares.shape[1]
        for number, (start, stop, up) in enumerate(self.ups.values()):
            own = (inner[:, number * rank : (number + 1) * rank] * shares).to(up.dtype)
            output[:, start:stop].addmm_(own, up[0].T)


class MixtureMember(SmallMember):
    """An expert with parts; `shares` are those of the pass that runs."""

    shares: torch.Tensor
    """[m, P] float32: of each token's request, the share of each part."""
    shares_of_slots: np.ndarray
    """[slots, P] float32: set by the state, which owns what each slot asks."""

    def __init__(
        self, prefix: str, model: nn.Module, config: VllmConfig, last_id: int | None, parts: Mapping[str, str]
    ) -> None:
        super().__init__(prefix, model, config, last_id)
        self._parts = parts
        """Folders of adapters over the model, by what the router calls them."""

    def join(self, multimodal: bool) -> int:
        """Put the parts into the model, whose weights are loaded by now.

        Returns:
            How many bytes they take.

        Raises:
            ValueError: a part changes what is no linear layer of the model; the message names it.
        """
        files = [AdapterFiles(folder, multimodal) for folder in self._parts.values()]
        products = [placed_products(self.model, each.changes, each.read) for each in files]
        dtype: Any = self.config.model_config.dtype
        modules = dict(self.model.named_modules())
        taken = 0
        for name in sorted({name for by_layer in products for name in by_layer}):
            layer_name = f"{self.prefix}{name}.low_rank"
            mixed = MixedLinear(modules[name], layer_name, self)
            mixed.put_parts([by_layer.get(name, ()) for by_layer in products], dtype)
            taken += install(mixed, layer_name, self.model, name, self.config)
        return taken

    def run(self, sub: SubBatch, build: BuildMetadata, kv_cache_config: KVCacheConfig) -> torch.Tensor:
        """See `SmallMember.run`."""
        batch = sub.batch
        of_tokens = np.repeat(self.shares_of_slots[batch.idx_mapping_np], batch.num_scheduled_tokens, axis=0)
        self.shares = torch_utils.async_tensor_h2d(of_tokens, device=batch.positions.device)
        return super().run(sub, build, kv_cache_config)

    def profile(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """See `SmallMember.profile`."""
        self.shares = torch.zeros(len(input_ids), len(self._parts), device=input_ids.device)
        return super().profile(input_ids, positions)

    def capture(self, *args: Any, **kwargs: Any) -> None:
        """None are captured: each pass has shares of its own."""
