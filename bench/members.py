"""Random members of realistic sizes: one large model of about 665M parameters, a base and experts of about 58M."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from zoo import FAMILY

VOCABULARY = 32_000
CONTEXT = 2_048
LARGE = {
    "hidden_size": 1536,
    "intermediate_size": 4224,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
}
SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def make_members(folder: Path, num_experts: int = 1) -> Path:
    """Write the members into `folder`, unless they are there, and return their configuration file."""
    experts = [f"expert{number}" for number in range(num_experts)]
    for seed, (name, sizes) in enumerate([("large", LARGE), ("base", SMALL), *((name, SMALL) for name in experts)]):
        if not (folder / name / "config.json").is_file():
            make_model(folder / name, sizes, seed)
    config = folder / "fusion.yaml"
    config.write_text(
        f"""\
large: {{model: ./large}}
base: {{model: ./base}}
experts:
{"".join(f"  {name}: {{model: ./{name}}}{chr(10)}" for name in experts)}
presets:
  giant: {{weighting: none}}
  giant-all: {{experts: [{", ".join(experts)}]}}
engine: {{dtype: bfloat16, max_model_len: {CONTEXT}, max_num_seqs: 32, kv_cache_memory_bytes: {2**30},
  enforce_eager: true}}
"""
    )
    return config


def make_model(folder: Path, sizes: Any, seed: int) -> None:
    """Write a Llama of these sizes with random weights, and the demo family's tokenizer."""
    tokenizer = FAMILY / "models" / "large"
    torch.manual_seed(seed)
    architecture: Any = LlamaForCausalLM
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, tie_word_embeddings=False, dtype="bfloat16", **sizes
    )
    model = architecture(config).to(torch.bfloat16)
    with torch.no_grad():
        # Logits with a spread like a trained model's, so that members differ and the search has something to find.
        model.lm_head.weight.mul_(6.0)
    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
