"""What every member thought of the tokens of requests that ask: its likeliest tokens, and the chosen one's share.

The likeliest tokens are known with the logits, but the chosen one only when it is sampled. Until then a step keeps
those rows' logits, a copy in their own dtype: what they are sampled from is masked in place by structured outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from vllm.utils import torch_utils

from server.engine.settings import FUSED, LARGE

# The likeliest tokens that a trace shows of each member.
TOP_TOKENS = 5

Top = list[tuple[int, float]]
"""Likeliest tokens in falling order: (id, probability)."""


class Thought(NamedTuple):
    """A member's distribution at one token, as it travels from the worker."""

    member: int
    """Its number (`server.engine.settings`)."""
    top: Top
    chosen: float
    """The probability of the token that was sampled; 0 for one that is not in the member's vocabulary."""


class Lens:
    """The rows of one step that asked, under every member that any of them uses."""

    def __init__(
        self, logits: Mapping[int, torch.Tensor], rows: Sequence[int], slots: np.ndarray, positions: torch.Tensor
    ) -> None:
        """Find the likeliest tokens of some rows, of those alone: the others did not ask, and may be many.

        Args:
            logits: [N, V] of each member by its number; rows that do not use it may hold anything.
            rows: those that asked.
            slots: [N] each row's slot, on the host.
            positions: [N] each row's position in its request.
        """
        device = positions.device
        index, self._slots = (
            torch_utils.async_tensor_h2d(np.asarray(numbers, dtype=np.int64), device=device)
            for numbers in (rows, slots[list(rows)])
        )
        self._next = positions[index] + 1
        self._members = list(logits)
        self._logits = [each[index] for each in logits.values()]
        self._totals, ids, probabilities = [], [], []
        for own in self._logits:
            wide = own.float()
            total = wide.logsumexp(1, keepdim=True)
            values, likeliest = wide.topk(min(TOP_TOKENS, wide.shape[1]), dim=1)
            self._totals.append(total)
            ids.append(likeliest)
            probabilities.append((values - total).exp())
        self._ids, self._probabilities = to_host(torch.stack(ids, 1)), to_host(torch.stack(probabilities, 1))
        self._chosen = torch.full((len(rows), len(logits)), torch.nan, device="cpu")

    def choose(self, tokens: torch.Tensor) -> None:
        """The rows are sampled: `tokens` [slots, positions] has what each request has read and said by now."""
        # A step that was under way when its request reached the longest text there is has no place for one more.
        chosen = tokens[self._slots, self._next.clamp(max=tokens.shape[1] - 1)].long()[:, None]
        columns = []
        for own, total in zip(self._logits, self._totals, strict=True):
            # Rejected drafts leave whatever stood there; nobody gets their rows.
            known = own.gather(1, chosen.clamp(min=0, max=own.shape[1] - 1)).float()
            columns.append((known - total).exp().masked_fill(chosen >= own.shape[1], 0.0))
        self._chosen = to_host(torch.cat(columns, 1))
        self._logits, self._totals = [], []

    def thoughts(self, place: int, used: set[int]) -> list[Thought]:
        """Of the `place`-th row that asked: the large model's, those of the small members in `used`, the fusion's.

        The copies to the host must be there.
        """
        found = {
            member: Thought(member, _pairs(ids, probabilities), chosen)
            for member, ids, probabilities, chosen in zip(
                self._members,
                self._ids[place].tolist(),
                self._probabilities[place].tolist(),
                self._chosen[place].tolist(),
                strict=True,
            )
            if member in (LARGE, FUSED) or member in used
        }
        # A step that fuses nothing has the large model's logits alone.
        found.setdefault(FUSED, found[LARGE]._replace(member=FUSED))
        return list(found.values())


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the host, or on its way there."""
    return tensor.to("cpu", non_blocking=True) if tensor.is_cuda else tensor


def _pairs(ids: list[int], probabilities: list[float]) -> Top:
    """(id, probability) of the tokens that can be sampled at all; a broken member has none."""
    return [
        (token_id, probability) for token_id, probability in zip(ids, probabilities, strict=True) if probability > 0.0
    ]
