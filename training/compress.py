"""A fine-tuned model as a LoRA adapter over its base: the nearest one of a rank.

What fine-tuning changed in each linear layer but the head, tau = W_expert - W_base, has a singular value decomposition
U S V^T. Of all matrices of rank r, the one of its r largest singular values is the nearest (Eckart and Young 1936):

    B = U_r S_r^(1/2),  A = S_r^(1/2) V_r^T,  |tau - B A|^2 = sum of the other S^2

Twin-Merging compresses its experts so (Lu et al. 2024, arXiv 2406.15479). Sharing out the ranks to the layers whose
values keep the most energy was tried: it keeps more of the change, and less of what the expert says (docs/adapters.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from server.errors import ConfigError


@dataclass(frozen=True)
class Layer:
    """One linear layer of the adapter."""

    name: str
    rank: int
    kept: float
    """Share of the change's energy, |tau|^2."""
    energy: float


@dataclass(frozen=True)
class Compressed:
    """What came of a compression."""

    layers: tuple[Layer, ...]
    parameters: int
    left_out: Mapping[str, float]
    """|tau|^2 of what else changed, by kind: embeddings, head, norms, biases. The adapter leaves it as in the base."""

    @property
    def kept(self) -> float:
        """Share of the linear layers' energy."""
        return sum(layer.kept * layer.energy for layer in self.layers) / sum(layer.energy for layer in self.layers)


def compress(base: Path, expert: Path, out: Path, rank: int) -> Compressed:
    """Write an expert to `out` as an adapter in PEFT's format.

    Args:
        base: the folder of the model that was fine-tuned.
        expert: that of what it became, of the same architecture.
        rank: of each layer.
        out: a new folder.

    Raises:
        ConfigError: the expert is no fine-tuned version of the base, or `out` holds other things.
    """
    refuse_full(out)
    ours, theirs = load(base), load(expert)
    check_same(ours, theirs, expert)
    return write_adapter(base, ours, theirs.state_dict(), out, rank)


def write_adapter(folder: Path, base: Any, after: Mapping[str, torch.Tensor], out: Path, rank: int) -> Compressed:
    """Write what turns the model `base`, of `folder`, into one with the tensors `after`, as near as the rank allows.

    Raises:
        ConfigError: nothing changed in any linear layer.
    """
    # The head is left out as the embeddings are, which it often is: so that the adapter can share all else (`server`).
    head = base.get_output_embeddings()
    linear = {n for n, module in base.named_modules() if isinstance(module, nn.Linear) and module is not head}
    tied = {n for n, module in base.named_modules() if module is head and base.config.tie_word_embeddings}
    layers: list[Layer] = []
    tensors: dict[str, torch.Tensor] = {}
    left_out: dict[str, float] = {}
    for key, weight in base.state_dict().items():
        name = key.removesuffix(".weight")
        tau = after[key].float() - weight.float()
        if name in tied or not tau.any():
            continue
        energy = float(tau.square().sum())
        if name in linear and key.endswith(".weight"):
            u, s, v = torch.linalg.svd(tau, full_matrices=False)
            u, s, v = u[:, :rank], s[:rank], v[:rank]
            tensors[f"base_model.model.{name}.lora_A.weight"] = (s.sqrt()[:, None] * v).contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = (u * s.sqrt()).contiguous()
            layers.append(Layer(name, len(s), float(s.square().sum()) / energy, energy))
        else:
            kind = key.rsplit(".", 2)[-2]
            left_out[kind] = left_out.get(kind, 0.0) + energy
    if not layers:
        raise ConfigError("there is nothing to compress: the linear layers are the base's own")
    _write(out, folder, tensors, {layer.name: layer.rank for layer in layers})
    return Compressed(tuple(layers), sum(tensor.numel() for tensor in tensors.values()), left_out)


def refuse_full(out: Path) -> None:
    """Refuse a folder that has anything in it.

    Raises:
        ConfigError: it has.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"OUT: {out} holds other things; name a new folder")


def load(folder: Path) -> Any:
    """A model in the format of its file, on the CPU.

    Raises:
        ConfigError: there is none that Transformers reads.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    # A phase of the command shows what is under way.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} has no config.json; a model in the Hugging Face format is needed")
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} cannot be read: {str(error).splitlines()[0]}") from None


def divergence(base: Path, expert: Path, adapter: Path, texts: Sequence[str]) -> float:
    """Mean KL(expert || base with the adapter) in nats per token, over texts of at most 1,024 tokens."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    full = load(expert).float().eval()
    compressed = PeftModel.from_pretrained(load(base).float(), str(adapter)).eval()
    total, tokens = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=1024).input_ids
        with torch.no_grad():
            target, approximate = (model(input_ids=ids).logits[0].log_softmax(-1) for model in (full, compressed))
        total += float((target.exp() * (target - approximate)).sum())
        tokens += ids.shape[1]
    return total / max(tokens, 1)


def check_same(base: Any, expert: Any, folder: Path) -> None:
    """Check that an expert, from `folder`, has the base's tensors.

    Raises:
        ConfigError: it has others.
    """
    shapes, others = ({n: list(t.shape) for n, t in model.state_dict().items()} for model in (base, expert))
    for name in sorted(shapes.keys() | others.keys()):
        if shapes.get(name) != others.get(name):
            raise ConfigError(
                f"{folder} is no fine-tuned version of the base: {name} is {others.get(name, 'not')} there, and "
                f"{shapes.get(name, 'not')} in the base"
            )


def _write(out: Path, base: Path, tensors: Mapping[str, torch.Tensor], ranks: Mapping[str, int]) -> None:
    from peft import LoraConfig
    from safetensors.torch import save_file

    usual = max(set(ranks.values()), key=list(ranks.values()).count)
    others = {name: number for name, number in ranks.items() if number != usual}
    config = LoraConfig(
        r=usual,
        lora_alpha=usual,
        rank_pattern=others,
        alpha_pattern=others,
        target_modules=sorted(ranks),
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base),
        inference_mode=True,
    )
    out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(out))
    # PEFT sorts what it writes at random: the same compression is the same file.
    path = out / "adapter_config.json"
    settings = json.loads(path.read_text())
    settings["target_modules"] = sorted(ranks)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    save_file(dict(tensors), out / "adapter_model.safetensors", metadata={"format": "pt"})
