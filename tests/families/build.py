"""Makes one family: a large model, a base, a fine-tuned expert and a LoRA adapter, all of one kind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from tests.families.kinds import LATENTS, MULTIMODAL, SETTINGS, SIZES
from tests.models import draw_weights, load_model, make_adapter, make_expert, make_tokenizer
from tests.multimodal import make_multimodal

CONFIG = """\
large: {{model: ./large}}
base: {{model: ./base}}
experts:
  tuned: {{model: ./tuned}}
{adapter}presets:
  giant: {{weighting: none}}
engine: {{dtype: float32, max_model_len: 160, max_num_seqs: 4, enforce_eager: true, kv_cache_memory_bytes: 33554432}}
"""
# AMX takes latent attention in bfloat16 alone.
LATENT = "engine: {{attention_backend: CPU_MLA, "
ADAPTED = "  adapted: {adapter: ./lora}\n"
# vLLM computes the softplus of these parameters (Apertus') in bfloat16, whatever the model is in: of these numbers it
# comes out within 2e-6 there.
ACTIVATION = {"alpha_p": 0.388671875, "alpha_n": -1.140625}
# The names that projections of attention have, of which an adapter changes those that there are.
PROJECTIONS = ("q_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "q_b_proj", "kv_b_proj")


def make_kind(folder: Path, kind: str, *, layers: int, seed: int) -> None:
    """Save a random checkpoint of one kind, with the tokenizer that all share."""
    if kind in MULTIMODAL:
        make_multimodal(folder, kind, layers=layers, seed=seed)
        return
    settings = {**SIZES, "num_hidden_layers": layers, **SETTINGS[kind]}
    if "layer_types" in settings:
        settings["layer_types"] = (settings["layer_types"] * layers)[-layers:]
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(AutoConfig.for_model(kind.partition("-")[0], **settings), dtype=torch.float32)
    draw_weights(model, torch.Generator().manual_seed(seed), scale=1.5, gemma=kind.startswith("gemma"))
    for name, parameter in model.named_parameters():
        if (value := ACTIVATION.get(name.rpartition(".")[2])) is not None:
            parameter.data.fill_(value)
    model.save_pretrained(folder)
    make_tokenizer(folder)


def make_family_of(folder: Path, kind: str) -> tuple[Path, list[str]]:
    """Return the configuration file, and the experts: `tuned`, and `adapted` where PEFT makes a plain adapter."""
    make_kind(folder / "large", kind, layers=3, seed=0)
    make_kind(folder / "base", kind, layers=2, seed=1)
    make_expert(folder / "tuned", folder / "base", seed=2)
    adapter, experts = "", ["tuned"]
    modules = {name.split(".")[-1] for name, _ in load_model(folder / "base").named_modules()}
    if targets := [name for name in PROJECTIONS if name in modules]:
        # PEFT adapts no layer of Gemma 4's towers, which have projections of the same names.
        towers: dict[str, Any] = {"exclude_modules": r".*_tower\..*"} if kind == "gemma4" else {}
        make_adapter(folder / "lora", folder / "base", target_modules=targets, seed=4, **towers)
        shutil.copytree(folder / "base", folder / "adapted")
        base = load_model(folder / "base", dtype=torch.float32)
        PeftModel.from_pretrained(base, str(folder / "lora")).merge_and_unload().save_pretrained(folder / "adapted")
        adapter, experts = ADAPTED, ["tuned", "adapted"]
    config = folder / "fusion.yaml"
    text = CONFIG.replace("engine: {{", LATENT) if kind in LATENTS else CONFIG
    config.write_text(text.format(adapter=adapter))
    return config, experts
