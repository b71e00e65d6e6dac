"""The launch of the fusion on a GPU: no copies to the host."""

import torch
import triton
from torch import Tensor

from fusion_kernels.batch import Batch, Fused
from fusion_kernels.triton.kernel import fuse_kernel

# Ids per step of a pass: four per thread. The sweep's 27 running sums in each lane are 108 of the 128 registers that a
# thread has with 16 warps; whether all else fits beside them has not been compiled for a card.
BLOCK_IDS = 2048
WARPS = 16
ALIGNMENT = 16


def fuse(batch: Batch) -> Fused:
    """`fuse_logits` in one launch, without a copy to the host."""
    rows, number = batch.use.shape
    experts = batch.experts
    if len({expert.dtype for expert in experts}) > 1:
        experts = [expert.float() for expert in experts]
    members = [
        member if member.stride(1) == 1 else member.contiguous() for member in [batch.large, batch.base, *experts]
    ]
    device = batch.large.device
    out = Fused(
        logits=torch.empty(batch.large.shape, dtype=torch.float32, device=device),
        alpha=torch.empty(rows, number, dtype=torch.float32, device=device),
        kl_target=torch.empty(rows, 2, dtype=torch.float32, device=device),
        kl_fused=torch.empty(rows, 2, dtype=torch.float32, device=device),
        broken=torch.empty(rows, dtype=torch.int8, device=device),
    )
    if rows == 0:
        return out
    fuse_kernel[(rows,)](
        *out,
        *members[:2],
        tuple(members[2:]),
        tuple(member.stride(0) for member in members),
        tuple(expert.shape[1] for expert in experts),
        batch.kind.contiguous(),
        batch.use.contiguous().view(torch.int8),
        batch.alpha.contiguous(),
        batch.alpha_max.contiguous(),
        batch.large.shape[1],
        batch.common,
        COLUMNS=triton.next_power_of_2(number),
        ALIGNED=all(_aligned(member) for member in members[2:]),
        BLOCK=BLOCK_IDS,
        num_warps=WARPS,
    )
    return out


def _aligned(member: Tensor) -> bool:
    """Whether every row starts at a multiple of `ALIGNMENT` bytes, which wide loads need."""
    return member.data_ptr() % ALIGNMENT == 0 and member.stride(0) * member.element_size() % ALIGNMENT == 0
