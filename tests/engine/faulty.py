"""A worker with a fault put in on purpose, for tests that must find it."""

from __future__ import annotations

import torch

from server.engine.speculation import sampler
from server.engine.speculation.worker import SpeculatingWorker

_compare = sampler.compare


def _take_every_draft(
    tokens: torch.Tensor, drafts: torch.Tensor, cu_num_logits: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As if each draft were what its request samples: the answer follows the drafting member."""
    tokens = tokens.clone()
    within = torch.ones_like(tokens, dtype=torch.bool)
    within[cu_num_logits[:-1].long()] = False
    follows = within[1:] & (drafts[1:] >= 0)
    tokens[:-1] = torch.where(follows, drafts[1:].to(tokens.dtype), tokens[:-1])
    return _compare(tokens, drafts, cu_num_logits, width)


class CredulousWorker(SpeculatingWorker):
    """Accepts every draft."""

    def init_device(self) -> None:
        super().init_device()
        sampler.compare = _take_every_draft
