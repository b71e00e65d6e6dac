"""Experts made of the base's files: the sums are what float32 makes of them, whatever number format the files have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from server.engine.weights import add_task_vectors, task_vectors
from tests.engine.families import PROJECTIONS
from tests.models import make_adapter, make_expert, make_model

IDS = torch.arange(3, 259)[None]
Files = Callable[[str], Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Folders by name: a bfloat16 base, an expert of it, and PEFT adapters whose changes are ever smaller."""
    folder = tmp_path_factory.mktemp("bfloat16")
    make_model(folder / "base", dtype="bfloat16")
    make_expert(folder / "red", folder / "base", scale=0.01)
    for name, scale in (("plain", 0.5), ("small", 0.03), ("tiny", 0.01)):
        make_adapter(folder / name, folder / "base", target_modules=PROJECTIONS, scale=scale)
    return lambda name: folder / name


def served(base: Path, source: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors that vLLM's model would be given."""
    return dict(add_task_vectors(load_file(base / "model.safetensors").items(), task_vectors(source)))


def float32(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def log_probs(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(IDS).logits.log_softmax(-1)
    return found


@pytest.mark.parametrize("adapter", ["plain", "small", "tiny"])
def test_a_bfloat16_adapter_is_what_peft_makes_of_it_in_float32(files: Files, adapter: str) -> None:
    base = float32(files("base"))
    before = log_probs(base)
    theirs = log_probs(PeftModel.from_pretrained(base, str(files(adapter))))
    ours = float32(files("base"))
    ours.load_state_dict(served(files("base"), {"adapter": str(files(adapter))}))
    error = (log_probs(ours) - theirs).abs().max()
    assert error < 1e-4
    assert error < 0.01 * (theirs - before).abs().max()


KINDS: dict[str, dict[str, Any]] = {
    "ranks": {"rank_pattern": {"q_proj": 8, r"layers\.1\.self_attn\.v_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "root-ranks": {"rank_pattern": {"q_proj": 8}, "use_rslora": True},
    "embeddings": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    "saved": {"modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    "dora": {"use_dora": True, "target_modules": PROJECTIONS},
    "dora-embeddings": {"use_dora": True, "target_modules": ["embed_tokens", "lm_head"]},
    "biases": {"bias": "all"},
    "biases-of-lora": {"bias": "lora_only"},
    "added-biases": {"lora_bias": True},
    "tokens": {"trainable_token_indices": [5, 300]},
    "tokens-by-name": {"trainable_token_indices": {"embed_tokens": [7], "lm_head": [8, 9]}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_lora_is_what_peft_makes_of_it(kind: str, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "qwen2")
    adapter = make_adapter(tmp_path / "adapter", base, everything=True, **KINDS[kind])
    theirs = PeftModel.from_pretrained(float32(base), str(adapter)).merge_and_unload().state_dict()
    ours, before = served(base, {"adapter": str(adapter)}), load_file(base / "model.safetensors")
    changed = 0
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)
        changed += not torch.equal(tensor, before[name])
    assert changed >= 3 - ("embeddings" in kind) - ("tokens" in kind)


def test_no_weight_that_an_adapter_changes_is_left_as_it_was(files: Files) -> None:
    held = load_file(files("base") / "model.safetensors")
    for name, tensor in served(files("base"), {"adapter": str(files("tiny"))}).items():
        if name.split(".")[-2] in PROJECTIONS:
            # Some products of random matrices are smaller than half a last place of float32, most are not.
            assert (tensor == held[name].float()).float().mean() < 0.01
        else:
            assert tensor is held[name] or torch.equal(tensor, held[name])


def test_a_merge_of_bfloat16_files_is_summed_in_float32(files: Files) -> None:
    source = {"merge": [[0.3, {"model": str(files("red"))}], [0.5, {"adapter": str(files("small"))}]]}
    adapted = PeftModel.from_pretrained(float32(files("base")), str(files("small"))).merge_and_unload().state_dict()
    base, red = float32(files("base")).state_dict(), float32(files("red")).state_dict()
    for name, tensor in served(files("base"), source).items():
        expected = base[name] + 0.3 * (red[name] - base[name]) + 0.5 * (adapted[name] - base[name])
        assert (tensor - expected).abs().max() <= 1e-6 * expected.abs().max(), name
