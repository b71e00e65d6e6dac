"""What became of a step's drafts, for traces and counters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from vllm.v1.worker.gpu.input_batch import InputBatch


@dataclass(frozen=True, eq=False)
class Outcome:
    """A step of B requests and N rows after its verification."""

    batch: InputBatch
    num_sampled: torch.Tensor
    """[B]: accepted drafts and the token after them."""
    delivered: torch.Tensor
    """[B]: how many of these the client gets."""

    @cached_property
    def rows_delivered(self) -> torch.Tensor:
        """[N] bool: the row's token reaches the client."""
        return self.batch.expanded_local_pos < self._by_row(self.delivered)

    @property
    def rows_drafted(self) -> torch.Tensor:
        """[N] bool: the row's token was drafted, and accepted."""
        return self.batch.expanded_local_pos < self._by_row(self.num_sampled) - 1

    @property
    def accepted(self) -> torch.Tensor:
        """[B]: accepted drafts that the client gets."""
        return torch.minimum(self.num_sampled - 1, self.delivered)

    @property
    def proposed(self) -> np.ndarray:
        """[B]: drafts that were verified."""
        drafts: np.ndarray = np.diff(self.batch.cu_num_logits_np) - 1
        return drafts

    def _by_row(self, values: torch.Tensor) -> torch.Tensor:
        return values[owners(self.batch.cu_num_logits, self.batch.expanded_local_pos.shape[0])]


def owners(cu_num_logits: torch.Tensor, rows: int) -> torch.Tensor:
    """[N] the request of each of a step's rows, by where each request's rows begin and end [B + 1]."""
    numbers = torch.arange(rows, dtype=cu_num_logits.dtype, device=cu_num_logits.device)
    return torch.searchsorted(cu_num_logits[1:].contiguous(), numbers, right=True)
