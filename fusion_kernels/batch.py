"""What a fusion takes and what it returns, for B rows, T experts and the V ids of the large model."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


# The numbers in `Fused.broken`, for t a number or a tensor; numba compiles these functions, too.
def broken_expert(t: Any) -> Any:
    """Expert t is broken."""
    return 1 + t


def broken_against(t: Any) -> Any:
    """What expert t is compared with is broken."""
    return -1 - t


def expert_of(broken: Any) -> Any:
    """The expert t that a number other than 0 is about: itself is broken, or what it is compared with."""
    return abs(broken) - 1


class Batch(NamedTuple):
    """The arguments of `fuse_logits`, checked: what every implementation gets."""

    large: Tensor
    against: list[Tensor]
    """T tensors, what each expert is compared with: one may stand several times, and its rows may have stride 0."""
    experts: list[Tensor]
    kind: Tensor
    use: Tensor
    alpha: Tensor
    alpha_max: Tensor

    @property
    def members(self) -> list[Tensor]:
        """Large, the T that experts are compared with, and the T experts, in this order."""
        return [self.large, *self.against, *self.experts]

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
    """[B, 2] float32: over the row's experts, mean a = KL(expert || what it is compared with) and mean b = KL(what it
    is compared with || expert), in nats."""
    kl_fused: Tensor
    """[B, 2] float32: f = KL(fused || large) and g = KL(large || fused) at the weights used, in nats."""
    broken: Tensor
    """[B] int8: whose NaN or +inf made the row fall back to the large model alone: `broken_expert(t)`, or
    `broken_against(t)` for what expert t is compared with; the first one in the order against_0, expert_0, against_1,
    expert_1, .. of the experts that the row uses, and 0 in every other row."""

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
        return self.broken != 0


def once_each(function: Callable[[Tensor], Made], tensors: Sequence[Tensor]) -> list[Made]:
    """`function` of every tensor, called once for one that stands several times."""
    found: dict[int, Made] = {}
    for tensor in tensors:
        if id(tensor) not in found:
            found[id(tensor)] = function(tensor)
    return [found[id(tensor)] for tensor in tensors]
