"""What a LoRA adapter in PEFT's format does to each tensor of the base that it was trained over.

For a weight W of the base, with s = lora_alpha / r (or / sqrt(r) with `use_rslora`), each by module where
`rank_pattern` or `alpha_pattern` say so:

    LoRA                W + s B A                     Hu et al. 2021, arXiv 2106.09685
    of an embedding     W + s (B A)^T
    DoRA                m / |W + s B A| (W + s B A)   Liu et al. 2024, arXiv 2402.09353; norms of rows
    lora_bias           b + s b_B
    saved               the adapter's own tensor (`modules_to_save`, `bias`, saved embeddings)
    trained tokens      the adapter's own rows of the embeddings
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from server.engine.text_part import text_name

PREFIX = "base_model.model."
LINEAR = re.compile(r"\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj\.weight$")
"""Layers that every family calls so, and that are one matrix there."""
# How an adapter's tensor ends, which of the module's tensors it changes, and as what.
_PARTS = [
    (".lora_A.weight", ".weight", "down"),
    (".lora_B.weight", ".weight", "up"),
    (".lora_B.bias", ".bias", "added"),
    (".lora_embedding_A", ".weight", "embedding_down"),
    (".lora_embedding_B", ".weight", "embedding_up"),
    (".lora_magnitude_vector", ".weight", "magnitude"),
    (".lora_magnitude_vector.weight", ".weight", "magnitude"),
    (".token_adapter.trainable_tokens_delta", ".weight", "rows"),
    (".base_layer.weight", ".weight", "saved"),
    (".base_layer.bias", ".bias", "saved"),
    (".weight", ".weight", "saved"),
    (".bias", ".bias", "saved"),
]


@dataclass(frozen=True)
class Change:
    """What an adapter does to one tensor of the base."""

    module: str
    parts: Mapping[str, str]
    """The adapter's tensors by what they are (the last column of `_PARTS`)."""
    rank: int
    scaling: float
    transposed: bool
    """Whether the tensor has a row per input: an embedding, or a layer with `fan_in_fan_out`."""
    token_ids: tuple[int, ...]
    """Which rows of an embedding `rows` are."""

    def apply(self, base: torch.Tensor, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """The changed tensor in float32; `read` returns a tensor of the adapter's by its name."""
        parts = {part: read(name).float() for part, name in self.parts.items()}
        changed = parts.get("saved", base.float())
        if "rows" in parts:
            changed = changed.index_copy(0, torch.tensor(self.token_ids), parts["rows"])
        if "added" in parts:
            changed = changed + self.scaling * parts["added"]
        down, up = (parts.get(side, parts.get(f"embedding_{side}")) for side in ("down", "up"))
        if down is None or up is None:
            return changed
        product = self.scaling * (up @ down)
        changed = changed + (product.T if self.transposed else product)
        if "magnitude" not in parts:
            return changed
        lengths: torch.Tensor = changed.norm(dim=0 if self.transposed else 1)
        factors = parts["magnitude"] / lengths
        return changed * (factors if self.transposed else factors.unsqueeze(1))


def read_changes(settings: Mapping[str, Any], names: Iterable[str], multimodal: bool) -> dict[str, Change]:
    """Return what an adapter changes, by the name of the base's tensor.

    Args:
        settings: its adapter_config.json.
        names: those of its tensors.
        multimodal: whether the base is the text model of a multimodal one; what the adapter changes besides is left
            out.

    Raises:
        ValueError: a tensor is none of the kinds above; the message names it.
    """
    parts: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        ending = next((each for each in _PARTS if name.endswith(each[0])), None)
        if ending is None or not name.startswith(PREFIX) or ("lora_" in name and ending[2] == "saved"):
            raise ValueError(name)
        module = name.removeprefix(PREFIX).removesuffix(ending[0])
        parts.setdefault((module, ending[1]), {})[ending[2]] = name
    changes = {}
    for (module, tensor), found in parts.items():
        rank, scaling = _rank_and_scaling(settings, module)
        of_text = text_name(module + tensor) if multimodal else module + tensor
        if of_text is None:
            continue
        transposed = "embedding_up" in found or bool(settings.get("fan_in_fan_out"))
        token_ids = _token_ids(settings, module) if "rows" in found else ()
        changes[of_text] = Change(module, found, rank, scaling, transposed, token_ids)
    return changes


def _rank_and_scaling(settings: Mapping[str, Any], module: str) -> tuple[int, float]:
    rank = _for_module(settings.get("rank_pattern"), module, settings["r"])
    lora_alpha = _for_module(settings.get("alpha_pattern"), module, settings["lora_alpha"])
    return rank, lora_alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _for_module(patterns: Mapping[str, Any] | None, module: str, usual: Any) -> Any:
    """The value whose key, a regular expression, matches the end of the module's name as PEFT matches it."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), usual)


def _token_ids(settings: Mapping[str, Any], module: str) -> tuple[int, ...]:
    indices = settings.get("trainable_token_indices") or ()
    if isinstance(indices, dict):
        indices = next((ids for key, ids in indices.items() if module == key or module.endswith(f".{key}")), ())
    return tuple(indices)
