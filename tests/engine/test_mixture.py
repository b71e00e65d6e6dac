"""What of mixtures and adapters shows only beside others: in the compile cache, and where a block sums for layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from vllm.model_executor.layers.linear import RowParallelLinear

from server.engine.composite import _changed
from server.engine.low_rank import LowRankLinear
from tests.models import make_adapter, make_model


def test_other_layers_are_other_compiled_code(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    first = make_adapter(tmp_path / "first", base)
    alike = make_adapter(tmp_path / "alike", base, seed=2, rank=8)
    more = make_adapter(tmp_path / "more", base, target_modules=["q_proj", "v_proj", "up_proj"])
    known = [_changed(list(map(str, adapters)), multimodal=False) for adapters in ([first], [alike], [first, alike])]
    assert known[0] == known[1] == known[2]
    others = [_changed([str(more)], multimodal=False), _changed([str(first), None], multimodal=False)]
    assert all(other != known[0] for other in others)
    assert others[0] != others[1]


@pytest.mark.parametrize(("reduces", "ranks", "sums"), [(True, 2, True), (False, 2, False), (True, 1, False)])
def test_a_sum_that_the_block_makes_is_left_to_it(reduces: bool, ranks: int, sums: bool) -> None:
    """As vLLM's Cohere blocks do: of two ranks each would add the whole, and the block both."""
    layer: Any = object.__new__(RowParallelLinear)
    nn.Module.__init__(layer)
    layer.reduce_results, layer.tp_size = reduces, ranks
    assert LowRankLinear(layer, "layer", list)._summed is sums
