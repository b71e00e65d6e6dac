"""What a fusion takes and what it returns, for B rows, T experts and the V ids of the large model."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

# The members as `Fused.broken` numbers them.
BASE, FIRST_EXPERT = 1, 2


class Batch(NamedTuple):
    """The arguments of `fuse_logits`, checked: what every implementation gets."""

    large: Tensor
    base: Tensor
    experts: list[Tensor]
    kind: Tensor
    use: Tensor
    alpha: Tensor
    alpha_max: Tensor

    @property
    def members(self) -> list[Tensor]:
        """Large, base and the experts, in this order."""
        return [self.large, self.base, *self.experts]

    @property
    def common(self) -> int:
        """V_c, the length of the shortest vocabulary."""
        return min(member.shape[1] for member in self.members)


class Fused(NamedTuple):
    """What `fuse_logits` returns."""

    logits: Tensor
    """[B, V] float32: large + sum_t alpha_t delta_t, not normalised."""
    alpha: Tensor
    """[B, T] float32: the weights used; 0 for an expert that had no part, 1 for the expert of an `ALONE` row."""
    kl_target: Tensor
    """[B, 2] float32: mean a = KL(expert || base) and mean b = KL(base || expert) over the row's experts, in nats."""
    kl_fused: Tensor
    """[B, 2] float32: f = KL(fused || large) and g = KL(large || fused) at the weights used, in nats."""
    broken: Tensor
    """[B] int8: the member whose NaN or +inf made the row fall back to the large model alone: `BASE`, or
    `FIRST_EXPERT` + t for expert t; the first one found where there are several, and 0 in every other row."""

    @classmethod
    def room_for(cls, batch: Batch) -> Self:
        """Return uninitialised tensors for a batch's results, on its device."""
        rows, number = batch.use.shape

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(rows, *shape, dtype=dtype, device=batch.large.device)

        return cls(empty(batch.large.shape[1]), empty(number), empty(2), empty(2), empty(dtype=torch.int8))

    @property
    def fallback(self) -> Tensor:
        """[B] bool: a member that the row needed is broken, so the row is the large model alone."""
        return self.broken > 0
