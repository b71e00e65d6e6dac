"""The fusion on the CPU: numba code over row ranges, one range per thread."""

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_kernels import plain
from fusion_kernels.cpu_moments import BFLOAT16, BLOCK, FLOAT32
from fusion_kernels.cpu_row import FIXED_ROWS, fuse_rows
from fusion_kernels.threads import over_ranges
from fusion_kernels.weighting import Fused, Weighting

_local = threading.local()


def fuse(
    large: Tensor, base: Tensor, experts: list[Tensor], kind: Tensor, use: Tensor, alpha: Tensor, alpha_max: Tensor
) -> Fused:
    """`fuse_logits` for CPU tensors; float32 and bfloat16 logits are read in place, other dtypes are converted."""
    members = [_readable(member) for member in [large, base, *experts]]
    common = min(member.shape[1] for member in members)
    rows, number = use.shape
    # Whoever loads a model makes its dtype the default one.
    real: Any = {"dtype": torch.float32}
    out = Fused(
        logits=torch.empty(large.shape, **real),
        alpha=torch.zeros(rows, number, **real),
        kl_target=torch.zeros(rows, 2, **real),
        kl_fused=torch.zeros(rows, 2, **real),
        broken=torch.zeros(rows, dtype=torch.int8),
    )
    table = np.array(
        [[m.data_ptr(), m.stride(0) * m.element_size(), m.shape[1], _code(m)] for m in members], dtype=np.int64
    )
    settings = [value.contiguous().numpy() for value in (kind, use, alpha, alpha_max)]
    results = [value.numpy() for value in out]

    def run(first: int, stop: int) -> None:
        scratch, blocks = _scratch(FIXED_ROWS + number, common)
        fuse_rows(first, stop, table, common, *settings, *results, scratch, blocks)

    over_ranges(run, rows)
    together = kind == Weighting.KL_JOINT
    if together.any():
        parts = [large, base, *experts, kind, use, alpha, alpha_max]
        large, base, *experts, kind, use, alpha, alpha_max = (part[together] for part in parts)
        for whole, part in zip(out, plain.fuse(large, base, experts, kind, use, alpha, alpha_max), strict=True):
            whole[together] = part
    return out


def warm_up() -> None:
    """See `fusion_kernels.warm_up`."""
    logits = torch.zeros(1, 2, dtype=torch.float32)
    kind = torch.tensor([Weighting.NONE], dtype=torch.int8)
    ones = torch.ones(1, 1, dtype=torch.float32)
    fuse(logits, logits, [logits], kind, ones.bool(), ones, ones[0])


def _readable(member: Tensor) -> Tensor:
    member = member if member.dtype in (torch.float32, torch.bfloat16) else member.float()
    return member if member.stride(1) == 1 else member.contiguous()


def _code(member: Tensor) -> int:
    return BFLOAT16 if member.dtype == torch.bfloat16 else FLOAT32


def _scratch(rows: int, common: int) -> tuple[np.ndarray, np.ndarray]:
    """This thread's scratch memory, kept between calls: fresh pages would cost more than the sums."""
    kept = getattr(_local, "floats", None)
    if kept is None or kept.size < rows * common:
        _local.floats = kept = np.empty(rows * common, np.float32)
        _local.blocks = np.empty((2, BLOCK), np.float32)
    return kept[: rows * common].reshape(rows, common), _local.blocks
