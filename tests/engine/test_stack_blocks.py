"""The KV caches of several layers as one layer's blocks, and whose tokens lie where."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from server.engine.low_rank import Span
from server.engine.stack import _as_one, _spans

LAYERS, BLOCKS, HEADS, TOKENS, SIZE = 4, 3, 2, 8, 5


def layers(*, blocks_first: bool = False) -> list[torch.Tensor]:
    """Views [B, H, N, C] of one allocation, layer after layer or, in each block, layer after layer."""
    order = (BLOCKS, LAYERS) if blocks_first else (LAYERS, BLOCKS)
    whole = torch.arange(LAYERS * BLOCKS * HEADS * TOKENS * SIZE).view(*order, HEADS, TOKENS, SIZE)
    return [whole[:, layer] if blocks_first else whole[layer] for layer in range(LAYERS)]


def test_a_members_block_is_one_further_on() -> None:
    every = layers()
    for caches in (every, [every[2], every[0]], [every[1]]):
        whole, shifts = _as_one(caches)
        assert whole.untyped_storage().data_ptr() == every[0].untyped_storage().data_ptr()
        for cache, (blocks, tokens) in zip(caches, shifts, strict=True):
            assert tokens == blocks * TOKENS
            for block in range(BLOCKS):
                assert torch.equal(whole[blocks + block], cache[block])


def test_layers_that_do_not_lie_one_after_the_other_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="do not lie one after the other"):
        _as_one(layers(blocks_first=True)[:2])
    with pytest.raises(NotImplementedError, match="do not lie one after the other"):
        _as_one([layers()[0], layers()[1][:, :1]])


def test_spans_of_neighbours_are_one() -> None:
    places, lengths = np.array([0, 0, 2, 0, 1, 1]), np.array([1, 1, 1, 3, 4, 5])
    assert _spans(places, lengths) == [Span(0, 0, 2), Span(2, 2, 3), Span(0, 3, 6), Span(1, 6, 15)]
