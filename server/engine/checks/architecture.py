"""Whether vLLM can run each member as a part of the fused model, and what its layers cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.interfaces import has_inner_state, is_attention_free, is_hybrid, supports_multimodal
from vllm.model_executor.models.interfaces_base import is_text_generation_model
from vllm.platforms import current_platform
from vllm.transformers_utils.config import iter_rope_parameters
from vllm.transformers_utils.model_arch_config_convertor import (
    MODEL_ARCH_CONFIG_CONVERTORS,
    ModelArchConfigConvertorBase,
)

from server.engine.members import Member, Members
from server.errors import ConfigError, nearest

DTYPES = {"half": "float16", "float": "float32"}
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# As vLLM 0.32 `_FLOAT16_NOT_SUPPORTED_MODELS`, which it asks about the large model alone.
NOT_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "glm4")
# What Transformers calls layers that keep state of their own.
STATEFUL = ("mamba", "linear_attention", "conv")
# As vLLM 0.32 `_get_and_verify_max_len`: here max_position_embeddings counts the scaling already.
ROPE_SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


@dataclass(frozen=True)
class Architecture:
    """What a member's config.json says about its shape, as vLLM reads it."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    latent_kv: bool
    """The cache holds one latent vector for keys and values (DeepSeek's MLA)."""
    max_length: int | None
    """The longest sequence that its positions allow; None where nothing bounds it."""
    window: str
    """Which layers see a sliding window only; empty if none does."""

    def kv_bytes_per_token(self, kv_dtype_bytes: int, tensor_parallel_size: int = 1) -> int:
        """Bytes that one more token takes in the KV cache of each device: layers x 2 x KV heads x head_dim x bytes."""
        if self.latent_kv:
            return self.layers * self.head_dim * kv_dtype_bytes
        kv_heads = max(1, self.kv_heads // tensor_parallel_size)
        return self.layers * 2 * kv_heads * self.head_dim * kv_dtype_bytes


def check_architecture(member: Member, engine: Mapping[str, Any], dtype: str) -> Architecture:
    """Check that a member is a decoder-only text model that runs beside others, and describe it.

    Raises:
        ConfigError: vLLM does not have its architecture, it is of another kind, or it does not fit the engine's
            arguments.
    """
    name = _registered_name(member)
    _refuse_other_kinds(member, name)
    convertor = MODEL_ARCH_CONFIG_CONVERTORS.get(member.hf_config.model_type, ModelArchConfigConvertorBase)
    shape = convertor(member.hf_config, member.text_config).convert(supports_multimodal=False)
    architecture = Architecture(
        name=name,
        layers=shape.total_num_hidden_layers,
        heads=shape.total_num_attention_heads,
        kv_heads=shape.total_num_kv_heads,
        head_dim=shape.head_size,
        latent_kv=shape.is_deepseek_mla,
        max_length=_max_length(member, shape.derived_max_model_len_and_key[0]),
        window=_window(member, shape.total_num_hidden_layers),
    )
    if dtype == "float16" and member.hf_config.model_type in NOT_FLOAT16:
        raise ConfigError(
            f"{member.where}: {name} overflows in float16; set engine.dtype to bfloat16 or float32 instead"
        )
    _check_heads(member, architecture, int(engine.get("tensor_parallel_size") or 1))
    if architecture.latent_kv:
        _check_latent(member, engine, dtype)
    return architecture


def check_side_by_side(members: Members, engine: Mapping[str, Any]) -> None:
    """Check that vLLM prepares for the large model what every other member needs.

    Raises:
        ConfigError: ranks would wait for each other, or vLLM has nothing ready for a member of that kind.
    """
    sparse = [member.where for member in members.all if member.is_sparse]
    if sparse and int(engine.get("data_parallel_size") or 1) > 1 and len(members.all) > 1:
        raise ConfigError(
            f"engine.data_parallel_size: {sparse[0]} is a mixture of experts, whose ranks wait for each other in "
            "every layer, while members run only where a request uses them; start replicas instead"
        )
    for member in members.all:
        if member.is_latent != members.large.is_latent:
            raise ConfigError(
                f"{member.where}: of this member and the large model one has multi-head latent attention and the "
                "other has not; vLLM's attention takes its sizes from the large model there, so all or none must have "
                "it"
            )


def resolve_dtype(large: Member, engine: Mapping[str, Any]) -> str:
    """Return the number format that the engine computes in, by vLLM's rules for `auto`."""
    asked = engine.get("dtype") or "auto"
    if asked != "auto":
        return DTYPES.get(asked, asked)
    stored = str(getattr(large.text_config, "dtype", None) or "float32").removeprefix("torch.")
    preferred = [str(dtype).removeprefix("torch.") for dtype in current_platform.supported_dtypes]
    return stored if stored in preferred and stored != "float32" else preferred[0]


def kv_dtype_bytes(engine: Mapping[str, Any], dtype: str) -> int:
    """Return the bytes of one number in the KV cache."""
    asked = engine.get("kv_cache_dtype") or "auto"
    return DTYPE_BYTES[dtype] if asked == "auto" else DTYPE_BYTES.get(asked, 1)


def _registered_name(member: Member) -> str:
    names = list(member.hf_config.architectures or [])
    if not names:
        raise ConfigError(f"{member.where}: {member.folder}/config.json names no architectures")
    supported = ModelRegistry.get_supported_archs()
    for name in names:
        if name in supported:
            return name
    hint = nearest(names[0], supported)
    hint = hint if hint.startswith("did") else "see vLLM's list of supported text generation models"
    raise ConfigError(f"{member.where}: vLLM has no architecture '{names[0]}'; {hint}")


def _refuse_other_kinds(member: Member, name: str) -> None:
    needed = "a decoder-only text model with attention in every layer is needed"
    other_senses = f"{member.where}: {name} reads images or sound; {needed}"
    # Before vLLM's class is imported: those of such models need libraries that text models do without.
    if member.hf_config.get_text_config() is not member.hf_config:
        raise ConfigError(other_senses)
    keeps_state = f"{member.where}: {name} keeps state outside the KV cache; {needed}"
    layers = getattr(member.hf_config, "layer_types", None)
    if set(layers or ()) & set(STATEFUL):
        raise ConfigError(keeps_state)
    try:
        model = ModelRegistry.models[name].load_model_cls()
    except Exception as error:  # an import of vLLM's that fails on this machine
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{member.where}: vLLM cannot load {name} here: {reason}") from None
    if getattr(member.hf_config, "is_encoder_decoder", False) or not is_text_generation_model(model):
        raise ConfigError(f"{member.where}: {name} does not generate text token by token; {needed}")
    if supports_multimodal(model):
        raise ConfigError(other_senses)
    # As vLLM 0.32 `ModelConfig.is_hybrid`: Granite 4 has models of this class without any such layer.
    attention_alone = layers is not None and all(kind in ("attention", "full_attention") for kind in layers)
    if not attention_alone and (is_attention_free(model) or is_hybrid(model) or has_inner_state(model)):
        raise ConfigError(keeps_state)


def _check_heads(member: Member, architecture: Architecture, tensor_parallel_size: int) -> None:
    heads, kv_heads = architecture.heads, architecture.kv_heads
    parts = tensor_parallel_size
    if heads % parts or (kv_heads % parts and parts % kv_heads):
        raise ConfigError(
            f"{member.where}: its {heads} attention and {kv_heads} KV heads cannot be divided among "
            f"engine.tensor_parallel_size = {parts} devices"
        )
    if current_platform.is_cpu() and not architecture.latent_kv:
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        sizes = CPUAttentionBackend.get_supported_head_sizes()
        if architecture.head_dim not in sizes:
            raise ConfigError(
                f"{member.where}: its head_dim is {architecture.head_dim}; on CPU vLLM's attention takes "
                f"{', '.join(map(str, sizes))}"
            )


def _check_latent(member: Member, engine: Mapping[str, Any], dtype: str) -> None:
    # As vLLM 0.32 `CpuPlatform.get_attn_backend_cls` chooses, which does not ask for the number format.
    amx = current_platform.is_cpu() and torch.cpu._is_amx_tile_supported()
    if amx and dtype != "bfloat16" and engine.get("attention_backend") != "CPU_MLA":
        raise ConfigError(
            f"{member.where}: it has multi-head latent attention, for which vLLM takes AMX on this CPU, in bfloat16 "
            f"alone, and engine.dtype is {dtype}; set engine.dtype to bfloat16, or engine.attention_backend to CPU_MLA"
        )


def _max_length(member: Member, derived: float) -> int | None:
    if derived == float("inf"):
        return None
    scaling = 1.0
    if "gemma3" not in member.hf_config.model_type:
        for rope in iter_rope_parameters(member.text_config):
            if rope.get("rope_type") not in ROPE_SCALED_ALREADY:
                scaling = rope.get("factor") or scaling
    return int(derived * scaling)


def _window(member: Member, layers: int) -> str:
    config = member.text_config
    size = getattr(config, "sliding_window", None)
    if not size or getattr(config, "use_sliding_window", True) is False:
        return ""
    kinds = getattr(config, "layer_types", None)
    sliding = layers if kinds is None else list(kinds).count("sliding_attention")
    return f"{sliding} of {layers} layers see {size} tokens" if sliding else ""
