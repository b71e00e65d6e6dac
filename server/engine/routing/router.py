"""A router: of what a prompt is, in the base's eyes, and so which experts may steer its answer.

With h the base's last hidden state at the prompt's end, a router is a softmax regression over classes, each an expert
or `none`:

    p = softmax(W h + b)

`top` experts of the highest probability are chosen, as far as each has `LEAST` of it. The large model answers alone
where `none` is likelier than every expert, or where the chosen ones have less than the router's `threshold` together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from server.errors import ConfigError

NONE = "none"
LEAST = 0.1
"""The smallest probability with which an expert is chosen."""
_KIND = "logit-fusion router "
_FORMAT = f"{_KIND}2"
_SAMPLES, _SAMPLE = 256, 1 << 12


@dataclass(frozen=True, eq=False)
class Router:
    """A softmax regression over the base's hidden states."""

    weight: torch.Tensor
    """[C, width] float32."""
    bias: torch.Tensor
    """[C] float32."""
    classes: tuple[str, ...]
    """Names of experts, and perhaps `none`."""
    threshold: float
    base: str
    """The base's `fingerprint`."""

    def probabilities(self, states: torch.Tensor) -> torch.Tensor:
        """[n, C] float32 for the base's hidden states [n, width]."""
        weight, bias = self.weight.to(states.device), self.bias.to(states.device)
        return torch.softmax(states.float() @ weight.T + bias, dim=-1)

    def choose(self, probabilities: np.ndarray, among: Collection[str], top: int | None) -> list[str]:
        """The experts that steer, the likeliest first; none where the large model answers alone.

        Args:
            probabilities: [C].
            among: the experts that there are to choose from; any other class is as `none`.
            top: at most so many; `None`: any number.
        """
        if not np.isfinite(probabilities).all():
            return []  # the base's states held NaN or infinity
        order = np.argsort(-probabilities, kind="stable")
        if self.classes[order[0]] not in among:
            return []
        likely = [c for c in order if self.classes[c] in among and probabilities[c] >= LEAST] or [order[0]]
        chosen = likely[:top]
        if probabilities[chosen].sum() < self.threshold:
            return []
        return [self.classes[c] for c in chosen]

    def check_base(self, file: Path, base: Path) -> None:
        """Refuse the router, which was read from `file`, where it would read the states of another base.

        Raises:
            ConfigError: it was fitted for another one.
        """
        if self.base != fingerprint(base):
            raise ConfigError(
                f"{file} was fitted for another base than {base}; fit it for this one, by `logit-fusion route fit`"
            )

    def save(self, file: Path) -> None:
        """Write the router to `file`, in the safetensors format."""
        metadata = {
            "format": _FORMAT,
            "classes": json.dumps(self.classes),
            "threshold": repr(self.threshold),
            "base": self.base,
        }
        tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
        file.write_bytes(save(tensors, metadata))

    @classmethod
    def load(cls, file: Path) -> Router:
        """Read a router back.

        Raises:
            ConfigError: the file is none.
        """
        try:
            with safe_open(file, framework="pt") as opened:
                content: Any = opened
                metadata: dict[str, str] = content.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    is_router = metadata.get("format", "").startswith(_KIND)
                    what = "is a router of another version" if is_router else "is no router"
                    raise ConfigError(f"{file} {what}; `logit-fusion route fit` writes one")
                found = cls(
                    content.get_tensor("weight"),
                    content.get_tensor("bias"),
                    tuple(json.loads(metadata["classes"])),
                    float(metadata["threshold"]),
                    metadata["base"],
                )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ConfigError(f"{file} is no router, or cannot be read: {error}") from None
        if found.weight.ndim != 2 or not len(found.weight) == len(found.bias) == len(found.classes):
            raise ConfigError(f"{file} is no router: its tensors do not fit its classes")
        return found


def fingerprint(folder: Path) -> str:
    """What tells a model's weights from others': a digest of its files' names, sizes, and samples all over them."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for number in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]
