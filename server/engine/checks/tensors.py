"""Names, shapes and sizes of a member's tensors, read from file headers: no weights are loaded."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text
from vllm.model_executor.model_loader.weight_utils import filter_files_not_needed_for_inference

from server.engine.members import Member
from server.engine.text_part import text_name
from server.errors import ConfigError

_BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "F4": 4}
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Tensor:
    """One tensor as stored."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it, such as `BF16`."""

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes it takes as stored."""
        return self.parameters * _BITS.get(self.dtype, 8) // 8


def read_tensors(member: Member) -> dict[str, Tensor]:
    """Return every tensor of a model or an adapter by name; of a multimodal model, those of its text model.

    Raises:
        ConfigError: weights are missing, incomplete or damaged.
    """
    tensors = _read_all(member)
    if not member.multimodal or member.kind == "adapter":
        return tensors
    named = ((text_name(name), tensor) for name, tensor in tensors.items())
    return {name: tensor for name, tensor in named if name is not None}


def _read_all(member: Member) -> dict[str, Tensor]:
    adapter = member.kind == "adapter"
    paths = [member.folder / "adapter_model.safetensors"] if adapter else _model_files(member)
    if member.hub_id is not None and not all(path.is_file() for path in paths):
        return _read_from_hub(member, paths)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        if not path.is_file():
            hint = "; only adapters saved as safetensors are served" if adapter else ""
            raise ConfigError(f"{member.where}: {path} is missing{hint}")
        tensors |= _read_file(member.where, path)
    return tensors


def _model_files(member: Member) -> list[Path]:
    """Return the weight files that a model consists of, in the order in which vLLM looks for them."""
    folder = member.folder
    for suffix, single in (("safetensors", "model.safetensors"), ("bin", "pytorch_model.bin")):
        index = folder / f"{single}.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError) as error:
                raise ConfigError(f"{member.where}: {index} is not a weight index: {error}") from None
            return [folder / name for name in names]
        # As vLLM picks them: all there are, but those of a trainer's state.
        found = filter_files_not_needed_for_inference([str(path) for path in sorted(folder.glob(f"*.{suffix}"))])
        if left_over := [path for path in found if Path(path).name.startswith("adapter_")]:
            hint = "remove it" if len(found) > len(left_over) else "it is a LoRA adapter: name it under 'adapter'"
            raise ConfigError(
                f"{member.where}: {left_over[0]} would be loaded as a part of the model, which it is not; {hint}"
            )
        if found:
            return [Path(path) for path in found]
    if member.hub_id is not None:
        return [folder / "model.safetensors"]
    raise ConfigError(f"{member.where}: {folder} holds no weights; *.safetensors or *.bin files are needed")


def _read_file(where: str, path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    if path.suffix == ".bin":
        return _read_pickle(where, path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {name: Tensor(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{where}: {path} is damaged or cut short ({error}); copy or download it again") from None


def _read_pickle(where: str, path: Path) -> dict[str, Tensor]:
    import torch

    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    try:
        # On the meta device tensors have shapes but no contents.
        state = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:  # whatever the unpickler meets
        reason = " ".join(Text.from_ansi(str(error)).plain.split())[:200]
        raise ConfigError(f"{where}: {path} cannot be read: {reason}") from None
    return {
        name: Tensor(tuple(tensor.shape), names.get(tensor.dtype, "I8"))
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
    }


def _read_from_hub(member: Member, paths: list[Path]) -> dict[str, Tensor]:
    from huggingface_hub import get_safetensors_metadata, parse_safetensors_file_metadata
    from huggingface_hub.errors import NotASafetensorsRepoError

    hub_id, revision = member.hub_id, member.revision
    assert hub_id is not None
    try:
        if member.kind == "adapter":
            files = {path.name: parse_safetensors_file_metadata(hub_id, path.name, revision=revision) for path in paths}
        else:
            files = get_safetensors_metadata(hub_id, revision=revision).files_metadata
    except NotASafetensorsRepoError:
        raise ConfigError(f"{member.where}: '{hub_id}' on the hub holds no safetensors weights") from None
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"{member.where}: the weights of '{hub_id}' cannot be looked up: {reason}") from None
    return {
        name: Tensor(tuple(info.shape), info.dtype) for file in files.values() for name, info in file.tensors.items()
    }
