"""Quantised members answer as plain vLLM does with the same checkpoint, in every role, whatever they leave alone."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm import AsyncEngineArgs, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from fusion_kernels import Weighting
from server.engine.settings import FusionSettings
from tests.engine.engines import running
from tests.engine.families import LARGE, write_config
from tests.models import make_expert, make_model

PROMPTS = [[1, *range(40, 40 + 7 * n)] for n in range(1, 5)]
# What each checkpoint leaves as it was: a layer by its name, by a pattern, and the parts of one that vLLM fuses.
IGNORED = {
    "large": ["lm_head", "model.layers.1.mlp.down_proj"],
    "base": ["lm_head", "re:.*layers[.]0[.]self_attn.*"],
    "red": ["lm_head", "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.o_proj"],
}
LEFT = {
    "large": ("layers.1.mlp.down_proj",),
    "base": ("layers.0.self_attn",),
    "red": ("layers.0.mlp.gate_proj", "layers.0.mlp.up_proj", "layers.1.self_attn.o_proj"),
}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}


def quantise(folder: Path, ignore: list[str], left: tuple[str, ...]) -> None:
    """Round the projections to 8 bits, a scale a row, in compressed-tensors' format."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in list(tensors.items()):
        if not name.endswith("_proj.weight") or any(part in name for part in left):
            continue
        scale = tensor.float().abs().amax(dim=1, keepdim=True) / 127
        tensors[name] = (tensor.float() / scale).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    weights = INT8 | {"strategy": "channel"}
    activations = INT8 | {"strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": group},
        "ignore": ignore,
    }
    (folder / "config.json").write_text(json.dumps(config))


async def greedy(engine: Any, settings: FusionSettings | None, name: str) -> list[list[int]]:
    found = []
    for number, prompt in enumerate(PROMPTS):
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        if settings is not None:
            settings.attach(params)
        async for output in engine.generate({"prompt_token_ids": prompt}, params, f"{name}-{number}"):
            last = output
        found.append(list(last.outputs[0].token_ids))
    return found


@pytest.mark.long
async def test_int8_in_every_role(tmp_path: Path) -> None:
    make_model(tmp_path / "large", **LARGE)
    make_model(tmp_path / "base", seed=1)
    make_expert(tmp_path / "red", tmp_path / "base", seed=2)
    for name, ignore in IGNORED.items():
        quantise(tmp_path / name, ignore, LEFT[name])
    copytree(tmp_path / "base", tmp_path / "twin")
    config = write_config(tmp_path, {"red": "{model: ./red}", "twin": "{model: ./twin}"})
    async with running(config, "engine.dtype=bfloat16") as engine:
        ours = {
            "large": await greedy(engine, FusionSettings(), "large"),
            "base": await greedy(engine, FusionSettings(Weighting.ALONE, (1,)), "base"),
            "red": await greedy(engine, FusionSettings(Weighting.ALONE, (0,)), "red"),
        }
        # large + 1 (base - base): the base answers as the expert does that has the same files.
        assert await greedy(engine, FusionSettings(Weighting.STATIC, (1,), (1.0,)), "twin") == ours["large"]
    for name, tokens in ours.items():
        args = AsyncEngineArgs(
            model=str(tmp_path / name),
            dtype="bfloat16",
            max_model_len=160,
            max_num_seqs=4,
            enforce_eager=True,
            kv_cache_memory_bytes=33554432,
        )
        plain = AsyncLLM.from_engine_args(args)
        try:
            assert await greedy(plain, None, name) == tokens
        finally:
            plain.shutdown()
