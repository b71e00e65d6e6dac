"""Quantises a checkpoint in place, in the formats in which quantised models are published; rounding to nearest."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

GROUP = 32
"""How many neighbours share a scale, where groups do."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
FP8 = torch.float8_e4m3fn

Tensors = dict[str, torch.Tensor]


def int8(folder: Path, ignore: Sequence[str] = (), left: Sequence[str] = ()) -> None:
    """compressed-tensors, 8 bits in weights (a scale a row) and activations (a scale a token).

    `ignore` is what the checkpoint says it leaves unquantised, and `left` by which parts of names those are found.
    """

    def rounded(weight: torch.Tensor) -> Tensors:
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}

    bits = {"num_bits": 8, "type": "int", "symmetric": True}
    settings = _compressed("int-quantized", bits | {"strategy": "channel"}, bits)
    _quantise(folder, rounded, settings | {"ignore": ["lm_head", *ignore]}, left)


def int4(folder: Path) -> None:
    """compressed-tensors, 4 bits in weights, a scale a group."""

    def rounded(weight: torch.Tensor) -> Tensors:
        numbers, scale = _symmetric(weight)
        packed = _packed(numbers.reshape(len(weight), -1), range(8))
        shape = torch.tensor(weight.shape, dtype=torch.int64)
        return {"weight_packed": packed, "weight_scale": scale, "weight_shape": shape}

    bits = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    _quantise(folder, rounded, _compressed("pack-quantized", bits) | {"ignore": ["lm_head"]})


def gptq(folder: Path) -> None:
    """GPTQ's format, 4 bits in weights, symmetric, a scale a group."""

    def rounded(weight: torch.Tensor) -> Tensors:
        numbers, scale = _symmetric(weight)
        groups = torch.arange(weight.shape[1], dtype=torch.int32) // GROUP
        zeros = torch.full((len(scale.T), len(weight)), 7, dtype=torch.int32)  # one less than the zero
        packed = _packed(numbers.reshape(len(weight), -1), range(8)).T.contiguous()
        return {
            "qweight": packed,
            "qzeros": _packed(zeros, range(8)),
            "scales": scale.T.contiguous(),
            "g_idx": groups,
        }

    settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
    _quantise(folder, rounded, settings)


def awq(folder: Path) -> None:
    """AWQ's format, 4 bits in weights, a scale and a zero a group."""

    def rounded(weight: torch.Tensor) -> Tensors:
        grouped = weight.view(len(weight), -1, GROUP)
        low, high = grouped.amin(-1), grouped.amax(-1)
        scale = (high - low) / 15
        zero = (-low / scale).round().clamp(0, 15)
        numbers = (grouped / scale[..., None] + zero[..., None]).round().clamp(0, 15).to(torch.int32)
        turned = numbers.reshape(len(weight), -1).T.contiguous()
        return {
            "qweight": _packed(turned, AWQ_ORDER),
            "qzeros": _packed(zero.to(torch.int32).T, AWQ_ORDER),
            "scales": scale.T.contiguous(),
        }

    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    _quantise(folder, rounded, settings)


def fp8(folder: Path) -> None:
    """vLLM's own FP8, a scale a matrix."""

    def rounded(weight: torch.Tensor) -> Tensors:
        scale = weight.abs().amax() / torch.finfo(FP8).max
        return {"weight": (weight / scale).to(FP8), "weight_scale": scale}

    _quantise(folder, rounded, {"quant_method": "fp8", "activation_scheme": "dynamic"})


def fp8_block(folder: Path) -> None:
    """DeepSeek's FP8, a scale a block of 128 x 128."""

    def rounded(weight: torch.Tensor) -> Tensors:
        rows, columns = (-(-size // 128) for size in weight.shape)
        scale = torch.full((rows, columns), float(weight.abs().amax() / torch.finfo(FP8).max))
        return {"weight": (weight / scale[0, 0]).to(FP8), "weight_scale_inv": scale}

    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    _quantise(folder, rounded, settings)


def fp8_rows(folder: Path) -> None:
    """compressed-tensors FP8 in weights (a scale a row) and activations (a scale a token)."""

    def rounded(weight: torch.Tensor) -> Tensors:
        scale = weight.abs().amax(dim=1, keepdim=True) / torch.finfo(FP8).max
        return {"weight": (weight / scale).to(FP8), "weight_scale": scale}

    bits = {"num_bits": 8, "type": "float", "symmetric": True}
    settings = _compressed("float-quantized", bits | {"strategy": "channel"}, bits)
    _quantise(folder, rounded, settings | {"ignore": ["lm_head"]})


FORMATS: dict[str, Callable[[Path], None]] = {
    "int8": int8,
    "int4": int4,
    "AWQ": awq,
    "GPTQ": gptq,
    "FP8": fp8,
    "FP8 by block": fp8_block,
    "FP8 by row": fp8_rows,
}


def _quantise(
    folder: Path, rounded: Callable[[torch.Tensor], Tensors], settings: dict[str, Any], left: Sequence[str] = ()
) -> None:
    found: Tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith("_proj.weight") and not any(part in name for part in left):
            module = name.removesuffix("weight")
            found |= {f"{module}{part}": made for part, made in rounded(tensor.float()).items()}
        else:
            found[name] = tensor
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))


def _compressed(format_name: str, weights: dict[str, Any], activations: dict[str, Any] | None = None) -> dict[str, Any]:
    group: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
    if activations is not None:
        group["input_activations"] = activations | {"strategy": "token", "dynamic": True}
    return {"quant_method": "compressed-tensors", "format": format_name, "config_groups": {"group_0": group}}


def _symmetric(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers from 0 to 15, of which 8 means none, [out, groups, GROUP], and scales [out, groups]."""
    grouped = weight.view(len(weight), -1, GROUP)
    scale = grouped.abs().amax(-1) / 7
    return ((grouped / scale[..., None]).round().clamp(-8, 7) + 8).to(torch.int32), scale


def _packed(numbers: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """Numbers of 4 bits [rows, columns] packed into int32 [rows, columns / 8], of each eight in this order."""
    eights = numbers.to(torch.int64).view(len(numbers), -1, 8)
    packed = sum(eights[..., column] << (4 * place) for place, column in enumerate(order))
    assert isinstance(packed, torch.Tensor)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32).contiguous()
