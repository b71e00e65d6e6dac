"""The demo family at the cost of a real one: its functions unchanged, its sizes those of 665M and 58M parameters.

Zero columns in every MLP and layers that add nothing: a step reads and multiplies what a model of that size does, and
says what the demo model says. So drafts are accepted as often as the family's are, and cost what real ones cost.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from zoo import FAMILY

NAMES = ("large", "base", "math", "facts", "text")
TARGETS = {"large": (22, 665_000_000), "small": (8, 58_000_000)}
"""Layers and parameters."""


def make_widened(folder: Path, dtype: str) -> Path:
    """Write the widened family into `folder`, unless it is there, and return its configuration file."""
    for name in NAMES:
        if not (folder / name / "config.json").is_file():
            widen(FAMILY / "models" / name, folder / name, *TARGETS["large" if name == "large" else "small"])
    config = folder / "fusion.yaml"
    members = "".join(f"  {name}: {{model: ./{name}}}\n" for name in NAMES[2:])
    presets = "".join(f"  giant-{name}: {{experts: [{name}], weighting: kl}}\n" for name in NAMES[2:])
    config.write_text(
        f"large: {{model: ./large}}\nbase: {{model: ./base}}\nexperts:\n{members}presets:\n"
        f"  giant: {{weighting: none}}\n{presets}"
        f"engine: {{dtype: {dtype}, max_model_len: 1024, max_num_seqs: 64, kv_cache_memory_bytes: {2**30}, "
        "enforce_eager: true}\n"
    )
    return config


def widen(source: Path, target: Path, layers: int, parameters: int) -> None:
    """Write the Llama model in `source` to `target` with so many layers and about so many parameters."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(source)
    tensors = load_file(source / "model.safetensors")
    width, old_layers = config.hidden_size, config.num_hidden_layers
    others = sum(tensor.numel() for name, tensor in tensors.items() if ".mlp." not in name)
    others += (layers - old_layers) * 4 * width * width
    size = (parameters - others) // (3 * width * layers) // 64 * 64
    for name in [name for name in tensors if ".mlp." in name]:
        tensor = tensors[name]
        axis = 1 if "down_proj" in name else 0
        shape = list(tensor.shape)
        shape[axis] = size - shape[axis]
        tensors[name] = torch.cat([tensor, tensor.new_zeros(shape)], dim=axis).contiguous()
    last = f"model.layers.{old_layers - 1}."
    for layer in range(old_layers, layers):
        for name in [name for name in tensors if name.startswith(last)]:
            copied = tensors[name].clone()
            # A layer adds what these two give to its input: nothing.
            adds = name.endswith(("o_proj.weight", "down_proj.weight"))
            tensors[name.replace(last, f"model.layers.{layer}.")] = torch.zeros_like(copied) if adds else copied
    config.num_hidden_layers, config.intermediate_size = layers, size
    config.save_pretrained(target)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
