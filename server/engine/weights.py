"""The weights of the members beside the large one, as streams of (name, tensor) that vLLM's models load.

An expert is a full model, a LoRA adapter over the base, or a merge. The last two are the base plus task vectors
(Ilharco et al. 2023, arXiv 2212.04089: a fine-tuned model's weights minus the base's), added one tensor at a time
while the base's weights stream by, so no part is kept whole:

    adapter:  W = W_base + tau,  tau = scaling * B A, or what else it changes (`server.engine.adapter`)
    merge:    W = W_base + sum_i w_i tau_i,  tau_i = W_i - W_base for a model, as above for an adapter

Sums stay in float32, whatever the files hold, and are rounded once, to the engine's number format, where vLLM copies
them into its parameters. In a file's bfloat16 a small change of a large weight is lost.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from server.engine.adapter import read_changes
from server.engine.text_part import text_name


class TaskVector(Protocol):
    """What fine-tuning added to the base, by the name of the base's tensor."""

    def delta(self, name: str, base: torch.Tensor) -> torch.Tensor | None:
        """The float32 difference to `base`, of the same shape; `None` where there is none."""


class ModelTaskVector:
    """The task vector of a full fine-tuned model: its weights minus the base's."""

    def __init__(self, folder: str | Path, multimodal: bool = False) -> None:
        self._tensors = _TensorFiles(folder)
        self._names = {text_name(name) if multimodal else name: name for name in self._tensors.names}

    def delta(self, name: str, base: torch.Tensor) -> torch.Tensor | None:
        """See `TaskVector.delta`."""
        ours = self._names.get(name)
        return None if ours is None else self._tensors.read(ours).float() - base.float()


class AdapterFiles:
    """A LoRA adapter in PEFT's format: what it changes, and its tensors."""

    def __init__(self, folder: str | Path, multimodal: bool = False) -> None:
        folder = Path(folder)
        settings = json.loads((folder / "adapter_config.json").read_text())
        tensors = _TensorFiles(folder, "adapter_model.safetensors")
        self.changes = read_changes(settings, tensors.names, multimodal)
        """By the name of the base's tensor."""
        self.read = tensors.read


class AdapterTaskVector:
    """The task vector of a LoRA adapter."""

    def __init__(self, folder: str | Path, multimodal: bool = False) -> None:
        self._files = AdapterFiles(folder, multimodal)

    def delta(self, name: str, base: torch.Tensor) -> torch.Tensor | None:
        """See `TaskVector.delta`."""
        change = self._files.changes.get(name)
        return None if change is None else change.apply(base, self._files.read) - base.float()


def add_task_vectors(
    base: Iterable[tuple[str, torch.Tensor]], parts: Iterable[tuple[float, TaskVector]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Stream base + sum_i w_i tau_i: float32 where anything was added, the base's own tensor elsewhere."""
    parts = list(parts)
    for name, tensor in base:
        deltas = [(weight, part.delta(name, tensor)) for weight, part in parts]
        if all(delta is None for _, delta in deltas):
            yield name, tensor
            continue
        total = tensor.float()
        for weight, delta in deltas:
            if delta is not None:
                total = total + weight * delta
        yield name, total


def held_bytes(model: torch.nn.Module) -> int:
    """What a model's parameters take, each counted once however many modules share it."""
    storages = [parameter.untyped_storage() for parameter in model.parameters()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def task_vectors(source: dict[str, Any]) -> list[tuple[float, TaskVector]]:
    """The parts of an expert's source: none for a full model, one for an adapter, several for a merge."""
    match source:
        case {"adapter": _}:
            return [(1.0, _task_vector(source))]
        case {"merge": parts}:
            return [(weight, _task_vector(part)) for weight, part in parts]
        case _:
            return []


def _task_vector(source: dict[str, Any]) -> TaskVector:
    multimodal = bool(source.get("multimodal"))
    if "adapter" in source:
        return AdapterTaskVector(source["adapter"], multimodal)
    return ModelTaskVector(source["model"], multimodal)


class _TensorFiles:
    """Random access by name to the tensors of a folder's safetensors files."""

    def __init__(self, folder: str | Path, pattern: str = "*.safetensors") -> None:
        files: list[Any] = [safe_open(path, framework="pt") for path in sorted(Path(folder).glob(pattern))]
        self._file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a dict)

    @property
    def names(self) -> Collection[str]:
        """Those of all tensors."""
        return self._file_of.keys()

    def read(self, name: str) -> torch.Tensor:
        """The tensor of that name."""
        tensor: torch.Tensor = self._file_of[name].get_tensor(name)
        return tensor
