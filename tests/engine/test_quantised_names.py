"""Layers that a quantised checkpoint leaves alone keep being left alone under a member's prefix."""

from __future__ import annotations

import re
from typing import Any

import pytest
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.layers.quantization.compressed_tensors.utils import should_ignore_layer
from vllm.model_executor.layers.quantization.fp8 import Fp8Config
from vllm.model_executor.layers.quantization.utils.quant_utils import is_layer_skipped

from server.engine.member_config import quantised_under

INT8 = {
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
    "format": "int-quantized",
    "quant_method": "compressed-tensors",
}
FUSED = {"gate_up_proj": ["gate_proj", "up_proj"]}


class Config:
    """The one field of vLLM's configuration that is looked at."""

    def __init__(self, quant_config: Any) -> None:
        self.quant_config = quant_config


def under(quant_config: Any, prefix: str = "expert_math") -> Any:
    config: Any = Config(quant_config)
    return quantised_under(config, prefix).quant_config


@pytest.mark.parametrize(
    ("ignore", "layer", "left_alone"),
    [
        (["model.layers.1.mlp.down_proj"], "expert_math.model.layers.1.mlp.down_proj", True),
        (["model.layers.1.mlp.down_proj"], "expert_math.model.layers.2.mlp.down_proj", False),
        (["lm_head"], "expert_math.lm_head", True),
        (["re:.*down_proj"], "expert_math.model.layers.1.mlp.down_proj", True),
        (["re:model[.]layers[.]1[.].*"], "expert_math.model.layers.2.mlp.down_proj", False),
        (
            ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"],
            "expert_math.model.layers.0.mlp.gate_up_proj",
            True,
        ),
    ],
)
def test_compressed_tensors(ignore: list[str], layer: str, left_alone: bool) -> None:
    config = under(CompressedTensorsConfig.from_config({**INT8, "ignore": ignore}))
    assert should_ignore_layer(layer, ignore=config.ignore, fused_mapping=FUSED) is left_alone


def test_fp8() -> None:
    config = under(Fp8Config(True, "dynamic", ignored_layers=["model.layers.1.mlp.down_proj", "lm_head"]))
    assert is_layer_skipped("expert_math.model.layers.1.mlp.down_proj", config.ignored_layers)
    assert is_layer_skipped("expert_math.lm_head", config.ignored_layers)
    assert not is_layer_skipped("expert_math.model.layers.0.mlp.down_proj", config.ignored_layers)


def test_the_engines_own_configuration_stays_as_it_is() -> None:
    shared = CompressedTensorsConfig.from_config({**INT8, "ignore": ["lm_head"]})
    under(shared)
    assert shared.ignore == ["lm_head"]
    assert re.match("large", under(shared, "large").ignore[0])


def test_a_model_that_is_not_quantised() -> None:
    assert under(None) is None
