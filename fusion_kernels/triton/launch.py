"""The launches of the fusion on a GPU, without a copy to the host."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from fusion_kernels.batch import Batch, Fused, once_each
from fusion_kernels.triton.advance import advance_kernel, finish_kernel
from fusion_kernels.triton.merging import WIDTH
from fusion_kernels.triton.place import SCALE
from fusion_kernels.triton.scan import scan_kernel
from fusion_kernels.triton.state import STATE
from fusion_kernels.triton.write import write_kernel

CHUNK_IDS = 4096
"""Ids of a program. Fixed, so that a row's result does not depend on how many rows are beside it."""
BLOCK_IDS = 512
"""Ids per step of a sweep: four per thread, whose 27 sums are 108 of its registers."""
WIDE_IDS = 1024
"""Ids per step of what waits for memory."""
COMPILED_WITH = {"num_warps": 4, "maxnreg": 168, "enable_fp_fusion": True}
"""So that a multiprocessor has three programs: one computes while the others wait for memory."""
COMPILED_ALONE_WITH = COMPILED_WITH | {"maxnreg": 255}
"""For `finish`, whose programs are few."""
PASSES = 2
"""Passes of all programs that follow the first sweep: few searches want more."""
SLOTS = 8
"""Experts that a compiled kernel has room for, at least: no number of them in use needs a kernel of its own."""
ALIGNMENT = 16


class Launch(NamedTuple):
    """One kernel's launch."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]
    """What it is compiled with."""

    def run(self) -> None:
        """Have the device do it, some time."""
        self.kernel[self.grid](**self.arguments, **self.options)


def fuse(batch: Batch) -> Fused:
    """`fuse_logits` in `PASSES` + 3 launches, without a copy to the host."""
    out = Fused.room_for(batch)
    # Triton launches on the current device, whatever the tensors' is.
    with torch.cuda.device_of(batch.large) if batch.large.is_cuda else nullcontext():  # type: ignore[no-untyped-call]
        for launch in launches(batch, out) if len(batch.kind) > 0 else ():
            launch.run()
    return out


def launches(batch: Batch, out: Fused) -> Iterator[Launch]:
    """What fills `out`, in this order."""
    rows, number = batch.use.shape
    arguments = _arguments(batch, out)
    programs = rows * arguments["chunks"]
    for kernel, grid in (
        (scan_kernel, (programs, number)),
        *[(advance_kernel, (programs, number))] * PASSES,
        (finish_kernel, (rows, number)),
        (write_kernel, (programs,)),
    ):
        options = COMPILED_ALONE_WITH if kernel is finish_kernel else COMPILED_WITH
        yield Launch(kernel, grid, {name: arguments[name] for name in kernel.arg_names}, options)


def _arguments(batch: Batch, out: Fused) -> dict[str, Any]:
    """All that any of the kernels takes, by name."""
    rows, number = batch.use.shape
    vocabulary = batch.large.shape[1]
    chunks, columns = triton.cdiv(vocabulary, CHUNK_IDS), max(SLOTS, triton.next_power_of_2(number))
    (large,) = _slots([batch.large], 1)
    against, experts = _slots(batch.against, columns), _slots(batch.experts, columns)

    def scratch(*shape: int) -> Tensor:
        return torch.empty(rows, *shape, dtype=torch.float32, device=large.device)

    return {
        "logits": out.logits,
        "out_alpha": out.alpha,
        "kl_target": out.kl_target,
        "kl_fused": out.kl_fused,
        "broken_member": out.broken,
        "lines": scratch(number, chunks, WIDTH.value),
        "states": scratch(number, STATE.value),
        "notes": scratch(2),
        "counters": torch.zeros(rows, 1 + number, dtype=torch.int32, device=large.device),
        "large": large,
        "against": against,
        "experts": experts,
        "large_stride": large.stride(0),
        "against_strides": tuple(slot.stride(0) * SCALE.value for slot in against),
        "expert_strides": tuple(slot.stride(0) * SCALE.value for slot in experts),
        "lengths": tuple(slot.shape[1] * SCALE.value for slot in experts),
        "kind": batch.kind.contiguous(),
        "use": batch.use.contiguous().view(torch.int8),
        "alpha": batch.alpha.contiguous(),
        "alpha_max": batch.alpha_max.contiguous(),
        "number": number,
        "vocabulary": vocabulary,
        "common": batch.common,
        "chunks": chunks,
        "COLUMNS": columns,
        "ALIGNED": all(map(_aligned, {large, *against, *experts})),
        "ALIGNED_OUT": _aligned(out.logits),
        "CHUNK": CHUNK_IDS,
        "BLOCK": BLOCK_IDS,
        "WIDE": WIDE_IDS,
        "SPLITS": triton.next_power_of_2(chunks),
    }


def _slots(tensors: list[Tensor], columns: int) -> tuple[Tensor, ...]:
    """The tensors with one dtype and adjacent ids; then the first one again, up to `columns`, which nobody reads."""
    if len({tensor.dtype for tensor in tensors}) > 1:
        tensors = once_each(Tensor.float, tensors)
    tensors = once_each(lambda tensor: tensor if tensor.stride(1) == 1 else tensor.contiguous(), tensors)
    return tuple(tensors + tensors[:1] * (columns - len(tensors)))


def _aligned(member: Tensor) -> bool:
    """Whether every row starts at a multiple of `ALIGNMENT` bytes, which wide loads need."""
    return member.data_ptr() % ALIGNMENT == 0 and member.stride(0) * member.element_size() % ALIGNMENT == 0
