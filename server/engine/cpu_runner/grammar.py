"""Structured outputs: -inf for the tokens that a grammar forbids."""

# mypy: disable-error-code="untyped-decorator"
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_kernels.cpu.threads import over_ranges
from server.engine.cpu_runner.arrays import SHARE, array, for_logits, line

# -inf, and its bits in the dtypes of 16 bits.
_LOWEST = {torch.float32: -np.inf, torch.bfloat16: -128, torch.float16: -1024}


def apply_grammar_bitmask(
    logits: Tensor,
    logits_indices: Tensor,
    cu_num_logits: Tensor,
    bitmask: Tensor,
    vocab_size: int,
    mask_stride: int,
) -> None:
    """structured_outputs._apply_grammar_bitmask_kernel: keep the tokens whose bits are set.

    Args:
        logits: [rows, V], changed in place.
        logits_indices: [M] int32, for each mask: request of the batch * `mask_stride` + row in that request.
        cu_num_logits: [B + 1] int32; masks beyond a request's rows are left out.
        bitmask: [M, V / 32] int32.
        vocab_size: V.
        mask_stride: most rows of a request.
    """
    lowest = _LOWEST[logits.dtype]
    raw = logits.view(torch.int16).numpy() if logits.element_size() == 2 else logits.numpy()
    parts = [array(part) for part in (logits_indices, cu_num_logits, bitmask)]

    def run(first: int, stop: int) -> None:
        forbid(first, stop, raw, lowest, *parts, vocab_size, mask_stride)

    over_ranges(run, logits_indices.numel(), -(-SHARE // vocab_size))


@for_logits("void(int64, int64, logits, float64, int32[:], int32[:], int32[:,:], int64, int64)")
def forbid(
    first: int, stop: int, logits: Any, lowest: float, indices: Any, starts: Any, masks: Any, vocabulary: int,
    stride: int,
) -> None:  # fmt: skip
    """Masks first .. stop; `lowest` is -inf as the array holds it."""
    for i in range(first, stop):
        request, index = indices[i] // stride, indices[i] % stride
        if index >= starts[request + 1] - starts[request]:
            continue
        entries, bits = line(logits, starts[request] + index), line(masks, i)
        low = entries.dtype.type(lowest)
        for token in range(vocabulary):
            if (bits[token >> 5] >> np.int32(token & 31)) & 1 == 0:
                entries[token] = low
