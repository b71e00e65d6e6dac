"""Tiny multimodal models: the text model of `tests.models` with a vision tower beside it, in one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.models import draw_weights, make_tokenizer

SIGLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
QWEN = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
# Of each kind: the text model's type, and the vision tower's settings.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", SIGLIP | {"image_size": 28, "patch_size": 14}),
    "gemma4": ("gemma4_text", SIGLIP | {"head_dim": 16, "num_key_value_heads": 2}),
    "qwen2_5_vl": ("qwen2_5_vl_text", QWEN | {"fullatt_block_indexes": [0]}),
    "qwen3_vl": ("qwen3_vl_text", QWEN | {"deepstack_visual_indexes": [0]}),
    "mistral3": ("mistral", SIGLIP | {"head_dim": 16, "image_size": 28, "patch_size": 14}),
    "llava": ("llama", SIGLIP | {"image_size": 28, "patch_size": 14, "model_type": "clip_vision_model"}),
    "internvl": ("qwen2", SIGLIP | {"image_size": [28, 28], "patch_size": [14, 14]}),
    "smolvlm": ("llama", SIGLIP | {"image_size": 28, "patch_size": 14}),
}


def make_multimodal(
    folder: Path,
    kind: str,
    *,
    seed: int = 0,
    layers: int = 2,
    vocab_size: int = 512,
    tokenizer_size: int | None = None,
) -> Path:
    """Save a random multimodal model with the tokenizer of `tests.models` and return the folder."""
    text_type, vision = KINDS[kind]
    text: dict[str, Any] = {
        "model_type": text_type,
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if text_type.startswith("gemma"):
        text |= {"sliding_window": 24, "query_pre_attn_scalar": 32}
    if text_type == "gemma4_text":
        text |= {"global_head_dim": 64, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": vocab_size}
    if text_type.startswith("qwen") and text_type != "qwen2":
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    tied = text_type.startswith("gemma")
    config = AutoConfig.for_model(kind, text_config=text, vision_config=vision, tie_word_embeddings=tied)
    config.get_text_config().tie_word_embeddings = tied
    auto: Any = AutoModelForImageTextToText
    model = auto.from_config(config, dtype=torch.float32)
    draw_weights(model, torch.Generator().manual_seed(seed), scale=1.5, gemma=tied)
    model.save_pretrained(folder)
    make_tokenizer(folder, tokenizer_size or vocab_size)
    return folder
