"""The noise of a seed, as vLLM's Model Runner V2 draws it: by seed, place in the text and token id."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from unittest.mock import patch

import torch

from server.engine import plugin


@cache
def _gumbel_sample() -> Callable[..., torch.Tensor]:
    """vLLM's function, with the runner's kernels in place; tests of their own hold these against Triton's."""
    with patch.dict(os.environ, {"VLLM_USE_V2_MODEL_RUNNER": "1"}):
        plugin.register()
    from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

    return gumbel_sample


def draw(logits: torch.Tensor, seed: int, place: int) -> int:
    """The token that a request with this seed takes from logits [V] that follow the token at `place`.

    They are as the sampler sees them last: divided by the temperature, cut by top-k, top-p and min-p.
    """
    drawn = _gumbel_sample()(
        logits.float()[None],
        torch.zeros(1, dtype=torch.int64),
        torch.ones(1, dtype=torch.float32),  # any that is not greedy
        torch.tensor([seed]),
        torch.tensor([place]),
        apply_temperature=False,
        is_drafting=False,
    )
    return int(drawn)
