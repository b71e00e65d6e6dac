"""The fusion on the CPU: numba code over row ranges, one range per thread."""

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_kernels.batch import Batch, Fused, once_each
from fusion_kernels.cpu.moments import BFLOAT16, BLOCK, FLOAT32, MEMBER
from fusion_kernels.cpu.row import FACTS, Scratch, Settings, fuse_rows
from fusion_kernels.cpu.search import COLUMNS
from fusion_kernels.cpu.threads import over_ranges
from fusion_kernels.search import GRID_POINTS
from fusion_kernels.weighting import Weighting

_local = threading.local()


def fuse(batch: Batch) -> Fused:
    """`fuse_logits` for CPU tensors; float32 and bfloat16 logits are read in place, other dtypes are converted."""
    tensors = once_each(_readable, batch.members)
    rows, number = batch.use.shape
    # Whoever loads a model makes its dtype and device the default ones.
    real: Any = {"dtype": torch.float32, "device": "cpu"}
    out = Fused(
        logits=torch.empty(batch.large.shape, **real),
        alpha=torch.zeros(rows, number, **real),
        kl_target=torch.zeros(rows, 2, **real),
        kl_fused=torch.zeros(rows, 2, **real),
        broken=torch.zeros(rows, dtype=torch.int8, device="cpu"),
    )
    members = np.array(once_each(_record, tensors), dtype=MEMBER)
    per_row = (batch.kind, batch.use, batch.alpha, batch.alpha_max)
    settings = Settings(*(value.contiguous().numpy() for value in per_row))
    arrays: Any = [value.numpy() for value in out]
    results = Fused(*arrays)
    common = batch.common

    def run(first: int, stop: int) -> None:
        fuse_rows(first, stop, members, settings, results, _scratch(number, common))

    over_ranges(run, rows)
    return out


def warm_up() -> None:
    """See `fusion_kernels.warm_up`."""
    logits = torch.zeros(1, 2, dtype=torch.float32, device="cpu")
    kind = torch.tensor([Weighting.NONE], dtype=torch.int8, device="cpu")
    ones = torch.ones(1, 1, dtype=torch.float32, device="cpu")
    fuse(Batch(logits, [logits], [logits], kind, ones.bool(), ones, ones[0]))


def _readable(member: Tensor) -> Tensor:
    member = member if member.dtype in (torch.float32, torch.bfloat16) else member.float()
    return member if member.stride(1) == 1 else member.contiguous()


def _record(member: Tensor) -> tuple[int, int, int, int]:
    code = BFLOAT16 if member.dtype == torch.bfloat16 else FLOAT32
    return member.data_ptr(), member.stride(0) * member.element_size(), member.shape[1], code


def _scratch(number: int, common: int) -> Scratch:
    """This thread's scratch memory, kept between calls: fresh pages would cost more than the sums."""
    rows = 3 + number
    kept = getattr(_local, "floats", None)
    if kept is None or kept.size < rows * common:
        _local.floats = kept = np.empty(rows * common, np.float32)
        _local.blocks = np.empty((2, BLOCK), np.float32)
    vectors = kept[: rows * common].reshape(rows, common)
    table = np.empty((GRID_POINTS, COLUMNS), np.float64)
    return Scratch(vectors[0], vectors[1], vectors[2], vectors[3:], _local.blocks, np.empty(number, FACTS), table)
