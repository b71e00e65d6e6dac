"""Where answers end, by slot: of the tokens that one step samples for a request, those that the client gets.

A step of speculation samples several tokens. The scheduler keeps those up to the first that ends the answer; traces
and counters must tell of no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.utils import torch_utils
from vllm.v1.worker.gpu.sample.logit_bias import MAX_NUM_STOP_TOKEN_IDS

if TYPE_CHECKING:
    from vllm import SamplingParams

_NO_TOKEN = -1
MAX_ENDS = 1 + MAX_NUM_STOP_TOKEN_IDS
"""As many stop tokens as vLLM has room for where it masks them, and the model's own end."""


class AnswerEnds:
    """The tokens that end each running request, and the last position that may give it one."""

    def __init__(self, max_num_seqs: int, device: torch.device) -> None:
        # Whoever loads a model makes its dtype and device the default ones.
        self._tokens = torch.full((max_num_seqs, MAX_ENDS), _NO_TOKEN, dtype=torch.int64, device=device)
        self._last = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)

    def forget(self, slot: int) -> None:
        """A request that does not speculate enters a slot: it has one token a step, and gets each."""
        self._tokens[slot] = _NO_TOKEN
        self._last[slot] = torch.iinfo(torch.int64).max

    def add(self, slot: int, params: SamplingParams, num_prompt_tokens: int, max_model_len: int) -> None:
        """A request that speculates enters a slot."""
        ends = {params.eos_token_id, *(params.stop_token_ids or ())} - {None}
        row = np.full(self._tokens.shape[1], _NO_TOKEN, dtype=np.int64)
        row[: len(ends)] = sorted(token for token in ends if token is not None)
        self._tokens[slot] = torch_utils.async_tensor_h2d(row, device=self._tokens.device)
        # The row at the prompt's last position gives the first token, so the one at position p gives number
        # p - (prompt's length - 1), counted from 0.
        limit = max_model_len if params.max_tokens is None else num_prompt_tokens + params.max_tokens
        self._last[slot] = min(limit, max_model_len) - 2

    def delivered(
        self, slots: torch.Tensor, sampled: torch.Tensor, num_sampled: torch.Tensor, first: torch.Tensor
    ) -> torch.Tensor:
        """How many of its sampled tokens each request of a step gets: [B] int64.

        Args:
            slots: [B] int64.
            sampled: [B, K + 1] int64; the first `num_sampled` [B] of each row are valid.
            first: [B] int64, the position whose row gave a request's first sampled token.
        """
        places = torch.arange(sampled.shape[1], device=sampled.device)
        ends = (sampled[:, :, None] == self._tokens[slots][:, None, :]).any(2)
        # Up to and with the first token that ends the answer.
        before_end = ends.cumsum(1) - ends.long() == 0
        in_length = first[:, None] + places <= self._last[slots][:, None]
        return (before_end & in_length & (places < num_sampled[:, None])).sum(1)
