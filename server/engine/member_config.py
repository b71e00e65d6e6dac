"""vLLM's configuration of each member: what `vllm serve` would make of it alone, under the composite's settings.

vLLM looks up what it must adapt for an architecture (`MODELS_CONFIG_MAP`, version 0.32) by the architecture's name, and
the composite's is none of those: so each member's is looked up here.
"""

from __future__ import annotations

import re
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.model_executor.models.utils import WeightsMapper
from vllm.transformers_utils.config import get_config, get_hf_text_config

from server.engine.text_part import PREFIXES, text_part

# The start of a layer's whole name; patterns ("re:...") and parts of names match under a prefix as they are.
_LAYER_NAME = re.compile(r"^(?=(model|transformer|backbone)\.|lm_head\b)")


class LargeConfig(VerifyAndUpdateConfig):
    """What vLLM adapts for the composite: what it would for the large model."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Called when the engine's model configuration is made."""
        _adaptation(model_config.hf_config.fusion["architectures"]).verify_and_update_model_config(model_config)

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Called when the engine's whole configuration is made."""
        hf_config = vllm_config.model_config.hf_config
        _adaptation(hf_config.fusion["architectures"]).verify_and_update_config(vllm_config)


def small_config(vllm_config: VllmConfig, folder: str) -> VllmConfig:
    """The engine's configuration with a small member in the large model's place."""
    trusted = vllm_config.model_config.trust_remote_code
    hf_config = text_part(get_config(folder, trust_remote_code=trusted), Path(folder))
    adaptation = _adaptation(hf_config.architectures)
    shared = copy(vllm_config)
    # vLLM 0.32 leaves the large model's text configuration in place, and with it the large model's vocabulary.
    shared.model_config = copy(vllm_config.model_config)
    shared.model_config.hf_text_config = get_hf_text_config(hf_config)
    # What is adapted for one member is none of the others' business.
    shared.attention_config = copy(vllm_config.attention_config)
    shared.cache_config = copy(vllm_config.cache_config)
    config = shared.with_hf_config(hf_config, architectures=hf_config.architectures)
    model_config = config.model_config
    model_config.hf_text_config = get_hf_text_config(model_config.hf_config)
    model_config.model = folder
    adaptation.verify_and_update_model_config(model_config)
    model_config.model_arch_config = model_config.get_model_arch_config()
    # As vLLM finds it out for a model that it serves alone; the method is private, and read for version 0.32.
    model_config.quantization = None
    model_config._verify_quantization()
    # vLLM's attention layers take the window of a model whose layers are all alike from here; the large model's own
    # is none of the member's.
    config.cache_config.sliding_window = _uniform_window(hf_config)
    adaptation.verify_and_update_config(config)
    config.quant_config = VllmConfig.get_quantization_config(model_config, vllm_config.load_config)
    return config


def quantised_under(config: VllmConfig, prefix: str) -> VllmConfig:
    """The configuration with the layers that a checkpoint leaves unquantised named as they are called under `prefix`.

    Some methods compare whole names, which a member's prefix would defeat: the layer would be read as quantised.
    """
    if config.quant_config is None:
        return config
    config = copy(config)
    config.quant_config = deepcopy(config.quant_config)
    assert config.quant_config is not None
    config.quant_config.apply_vllm_mapper(WeightsMapper(orig_to_new_prefix=dict(PREFIXES)))
    config.quant_config.apply_vllm_mapper(WeightsMapper(orig_to_new_regex={_LAYER_NAME: f"{prefix}."}))
    ignored = getattr(config.quant_config, "ignore", None)
    if isinstance(ignored, list):
        # vLLM 0.32 takes a name without a point for the name of a class, and leaves it.
        config.quant_config.ignore = [  # type: ignore[attr-defined]
            f"{prefix}.{name}" if name == "lm_head" else name for name in ignored
        ]
    return config


def own_caches(config: VllmConfig) -> VllmConfig:
    """A member's configuration for a twin of it."""
    config = copy(config)
    config.cache_config = copy(config.cache_config)
    return config


def _adaptation(architectures: list[str] | None) -> type[VerifyAndUpdateConfig]:
    names = (name for name in architectures or () if name in MODELS_CONFIG_MAP)
    return MODELS_CONFIG_MAP[name] if (name := next(names, None)) else VerifyAndUpdateConfig


def _uniform_window(hf_config: Any) -> int | None:
    """The window of a model that has one in every layer; one with windows in some names them layer by layer."""
    layer_types = getattr(hf_config, "layer_types", None)
    if layer_types is not None and any(kind != "sliding_attention" for kind in layer_types):
        return None
    window: int | None = getattr(hf_config, "sliding_window", None)
    return window or None
