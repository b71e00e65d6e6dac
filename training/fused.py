"""How well the fusion would do on the held-out part while its expert is still being trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion_kernels import Weighting, fuse_logits
from training.tokens import Tokens

ALPHA_MAX = 2.0
# What large and base make of the held-out answers is kept while training: 2,048 tokens of a vocabulary of 128k in bf16
# are half a GiB for each.
MOST_TOKENS = 2048
ROWS = 256


@dataclass(frozen=True)
class Score:
    """Nats per token of the held-out answers; lower is better."""

    expert: float
    fused: float
    large: float


class HeldOut:
    """The held-out answers, and the logits of large and base at each of their tokens."""

    def __init__(self, examples: Sequence[Tokens]) -> None:
        """Take as many examples as `MOST_TOKENS` allows, and one at least."""
        self._examples: list[Tokens] = []
        room = MOST_TOKENS
        for example in examples:
            room -= len(example.ids) - example.start
            if room < 0 and self._examples:
                break
            self._examples.append(example)
        self._targets = torch.tensor([token for example in self._examples for token in example.ids[example.start :]])
        self._large = self._base = torch.empty(0)

    def __len__(self) -> int:
        """How many examples it takes."""
        return len(self._examples)

    def ask_large(self, model: Any) -> None:
        """Keep what the large model says."""
        self._large = self._logits(model)

    def ask_base(self, model: Any) -> None:
        """Keep what the base says."""
        self._base = self._logits(model)

    def score(self, model: Any) -> Score:
        """Score the expert alone, and fused by `kl`: logits = large + alpha (expert - base)."""
        expert = self._logits(model)
        parts = zip(*(torch.split(x, ROWS) for x in (self._large, self._base, expert)), strict=True)
        fused = torch.cat([fuse_alike(large, base, [own], Weighting.KL) for large, base, own in parts])
        return Score(self._nats(expert), self._nats(fused), self._nats(self._large))

    def _logits(self, model: Any) -> Tensor:
        """Logits [N, V] at the tokens that are learned, one example after the other, on the CPU."""
        was_training = model.training
        model.eval()
        found = []
        with torch.no_grad():
            for example in self._examples:
                ids = torch.tensor([example.ids], device=model.device)
                found.append(model(input_ids=ids).logits[0, example.start - 1 : -1].cpu())
        model.train(was_training)
        return torch.cat(found)

    def _nats(self, logits: Tensor) -> float:
        chosen = logits.float().log_softmax(-1).gather(1, self._targets[:, None])
        return -float(chosen.mean())


def fuse_alike(large: Tensor, base: Tensor, experts: Sequence[Tensor], kind: Weighting, alpha: float = 0.0) -> Tensor:
    """[N, V]: N rows of logits fused by one weighting and all `experts`; `alpha` counts for `STATIC` alone."""
    rows, number = len(large), len(experts)
    return fuse_logits(
        large,
        base,
        experts,
        kind=torch.full((rows,), int(kind), dtype=torch.int8),
        use=torch.ones(rows, number, dtype=torch.bool),
        alpha=torch.full((rows, number), alpha),
        alpha_max=torch.full((rows,), ALPHA_MAX),
    ).logits
