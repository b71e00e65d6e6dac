"""Families whose members differ: in architecture, attention window, vocabulary length, and in what an expert is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.models import make_adapter, make_expert, make_model
from tests.multimodal import KINDS, make_multimodal

LARGE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "layers": 3, "heads": 4, "kv_heads": 2}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ENGINE = "{dtype: float32, max_model_len: 160, max_num_seqs: 4, enforce_eager: true, kv_cache_memory_bytes: 33554432}"


def qwen3_over_qwen2(folder: Path) -> None:
    """A Qwen3 large model with Qwen2 experts, over one tokenizer."""
    make_model(folder / "large", "qwen3", **LARGE)
    make_model(folder / "base", "qwen2", seed=1)
    _experts(folder)


def windows_among_experts(folder: Path) -> None:
    """Mistral experts that see 24 tokens back, under a Llama model that sees all."""
    make_model(folder / "large", **LARGE)
    make_model(folder / "base", "mistral", sliding_window=24, seed=1)
    _experts(folder)


def window_of_the_large(folder: Path) -> None:
    """A Mistral large model that sees 24 tokens back, over Llama experts that see all."""
    make_model(folder / "large", "mistral", sliding_window=24, **LARGE)
    make_model(folder / "base", seed=1)
    _experts(folder)


def gemmas(folder: Path) -> None:
    """A Gemma 3 large model, a Gemma 2 base and expert, and a Gemma expert."""
    make_model(folder / "large", "gemma3", sliding_window=24, **LARGE)
    make_model(folder / "base", "gemma2", sliding_window=40, seed=1)
    make_expert(folder / "red", folder / "base", seed=2)
    make_model(folder / "blue", "gemma", seed=3)


def unequal_vocabularies(folder: Path) -> None:
    """One tokenizer of 480 ids, and vocabularies padded to 520, 512, 500 and 576."""
    make_model(folder / "large", vocab_size=520, tokenizer_size=480, **LARGE)
    make_model(folder / "base", vocab_size=512, tokenizer_size=480, seed=1)
    make_model(folder / "red", "qwen3", vocab_size=500, tokenizer_size=480, seed=2)
    make_model(folder / "blue", vocab_size=576, tokenizer_size=480, seed=3)


def sparse_members(folder: Path) -> None:
    """Mixtures of experts: the large model, and one of the experts beside a base that is none."""
    make_model(folder / "large", "mixtral", **LARGE)
    make_model(folder / "base", seed=1)
    make_model(folder / "red", "mixtral", seed=2)
    make_expert(folder / "blue", folder / "base", seed=3)


def sparse_beside_dense(folder: Path) -> None:
    """Mixtures of experts as base and experts, beside a large model that is none."""
    make_model(folder / "large", **LARGE)
    make_model(folder / "base", "mixtral", seed=1)
    _experts(folder)


def depths_and_head_sizes(folder: Path) -> None:
    """Gemma 4, whose layers differ in the size of their heads: three in the large model, two in the others."""
    make_model(folder / "large", "gemma4", sliding_window=24, **LARGE)
    make_model(folder / "base", "gemma4", sliding_window=40, seed=1)
    _experts(folder)


def multimodal(kind: str) -> Callable[[Path], None]:
    """Text of multimodal models of one kind, all of which also have a vision tower, and of one expert that has none."""

    def family(folder: Path) -> None:
        make_multimodal(folder / "large", kind, layers=3)
        make_multimodal(folder / "base", kind, seed=1)
        make_expert(folder / "red", folder / "base", seed=2)
        make_model(folder / "blue", seed=3)

    family.__name__ = f"multimodal_{kind}"
    return family


FAMILIES: list[Callable[[Path], None]] = [
    qwen3_over_qwen2,
    windows_among_experts,
    window_of_the_large,
    gemmas,
    unequal_vocabularies,
    sparse_members,
    sparse_beside_dense,
    depths_and_head_sizes,
    *map(multimodal, KINDS),
]


def make(family: Callable[[Path], None], folder: Path) -> Path:
    """Build a family with experts `red` and `blue`, and return its configuration file."""
    family(folder)
    return write_config(folder, {"red": "{model: ./red}", "blue": "{model: ./blue}"})


def make_derived(folder: Path) -> Path:
    """A family whose experts are adapters and merges, in the configuration; beside them, the same as whole models.

    The files are bfloat16, as most published ones are. The whole models are float32, made by PEFT
    (`merge_and_unload`) and by plain sums of state dictionaries.
    """
    make_model(folder / "large", **LARGE)
    make_model(folder / "base", "qwen2", seed=1, vocab_size=512, dtype="bfloat16")
    make_expert(folder / "red", folder / "base", seed=2)
    make_adapter(folder / "lora", folder / "base", target_modules=PROJECTIONS, use_rslora=True, seed=4)
    sources = {
        "red": "{model: ./red}",
        "adapted": "{adapter: ./lora}",
        "blend": "{merge: {red: 0.6, adapted: -0.3}}",
    }
    config = write_config(folder, sources)
    auto: Any = AutoModelForCausalLM
    base, red = (auto.from_pretrained(folder / name, dtype=torch.float32) for name in ("base", "red"))
    adapted = PeftModel.from_pretrained(
        auto.from_pretrained(folder / "base", dtype=torch.float32), str(folder / "lora")
    ).merge_and_unload()
    start, parts = base.state_dict(), [(0.6, red.state_dict()), (-0.3, adapted.state_dict())]
    base.load_state_dict(
        {name: tensor + sum(weight * (part[name] - tensor) for weight, part in parts) for name, tensor in start.items()}
    )
    for name, model in (("adapted", adapted), ("blend", base)):
        shutil.copytree(folder / "base", folder / name)
        model.save_pretrained(folder / name)
    return config


def write_config(folder: Path, experts: dict[str, str]) -> Path:
    lines = "\n".join(f"  {name}: {source}" for name, source in experts.items())
    config = folder / "fusion.yaml"
    config.write_text(
        f"large: {{model: ./large}}\nbase: {{model: ./base}}\nexperts:\n{lines}\n"
        f"presets:\n  giant: {{weighting: none}}\nengine: {ENGINE}\n"
    )
    return config


def _experts(folder: Path) -> None:
    make_expert(folder / "red", folder / "base", seed=2)
    make_expert(folder / "blue", folder / "base", seed=3)
