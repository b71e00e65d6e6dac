"""What adapters add to a layer: every stretch of tokens its own member's, nothing to the base's."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear

from server.engine.low_rank import LowRankLinear, Product, Span, _shard_in, _shard_out

IN, OUTS = 12, [8, 6]


class Ranked:
    """The facts of a layer on one of several ranks, without the process groups that vLLM's own constructors ask for."""

    def __init__(self, rank: int, size: int) -> None:
        nn.Module.__init__(self)  # type: ignore[arg-type]
        self.tp_rank, self.tp_size = rank, size
        self.output_partition_sizes = OUTS
        self.input_size = IN
        self.weight = nn.Parameter(torch.zeros(sum(OUTS), IN))


class Column(Ranked, MergedColumnParallelLinear):
    pass


class Row(Ranked, RowParallelLinear):
    pass


def draw_spans(rng: random.Random, places: int) -> list[Span]:
    """Some places in their order, sometimes of equal lengths."""
    spans, begin, alike = [], 0, rng.random() < 0.5
    for place in sorted(rng.sample(range(places), rng.randint(1, places))):
        length = 3 if alike else rng.randint(1, 5)
        spans.append(Span(place, begin, begin + length))
        begin += length
    return spans


@pytest.mark.parametrize("seed", range(20))
def test_each_stretch_gets_its_own_products(seed: int) -> None:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    places = 5
    products = {
        place: [
            Product(
                part, torch.randn(rank, IN, generator=generator), torch.randn(OUTS[part], rank, generator=generator)
            )
            for part in parts
        ]
        for place, rank, parts in ((1, 2, (0, 1)), (2, 3, (1,)), (4, 1, (0,)))
    }
    spans = draw_spans(rng, places)
    layer = LowRankLinear(Column(0, 1), "layer", lambda: spans)
    layer.make_room(places, [0, 1], 4, torch.float32)
    for place in range(places):  # first something else, which leaves nothing behind
        layer.put(place, [Product(1, torch.ones(4, IN), torch.ones(OUTS[1], 4))])
        layer.put(place, products.get(place, ()))
    x = torch.randn(spans[-1].end, IN, generator=generator)
    output = torch.randn(spans[-1].end, sum(OUTS), generator=generator)
    expected = output.double().clone()
    for place, begin, end in spans:
        for part, down, up in products.get(place, ()):
            start = sum(OUTS[:part])
            expected[begin:end, start : start + OUTS[part]] += (x[begin:end].double() @ down.T.double()) @ up.T.double()
    layer.add(x, output)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)


def test_models_by_transformers_see_their_own_layer() -> None:
    layer = LowRankLinear(Column(0, 1), "layer", lambda: [Span(1, 0, 2)])
    layer.make_room(2, [0], 4, torch.float32)
    layer.put(1, [Product(0, torch.ones(4, IN), torch.ones(OUTS[0], 4))])
    assert layer.output_partition_sizes == OUTS
    # They carry a dimension of one before the tokens.
    output = torch.zeros(1, 2, sum(OUTS))
    layer.add(torch.ones(1, 2, IN), output)
    assert output[..., : OUTS[0]].eq(4 * IN).all()
    assert not output[..., OUTS[0] :].any()


def test_ranks_have_the_parts_that_vllm_gives_them() -> None:
    up, down = torch.arange(8.0)[:, None], torch.arange(8.0)[None]
    of_columns = [_shard_out(Column(rank, 4), up, 2).flatten().tolist() for rank in range(4)]
    assert of_columns == [[0, 1], [2, 3], [4, 5], [6, 7]]
    # Two KV heads on four ranks: each is on two of them.
    assert [_shard_out(Column(rank, 4), up, 4)[0].item() for rank in range(4)] == [0, 0, 4, 4]
    assert [_shard_in(Row(rank, 4), down).flatten().tolist() for rank in range(4)] == of_columns
    assert _shard_in(Column(1, 4), down) is down
    assert _shard_out(Row(1, 4), up, 8) is up
