"""The kinds of weighting, what a fusion returns, and the grid of the paper's Algorithm 1."""

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor

# Algorithm 1 searches alpha in {0.0, 0.1, .., 2.0}.
GRID_STEPS_PER_UNIT = 10
GRID_POINTS = 21

# The members as `Fused.broken` numbers them.
BASE, FIRST_EXPERT = 1, 2


class Weighting(IntEnum):
    """How a row weighs its experts; the values are those of the int8 tensor `kind`."""

    NONE = 0
    """The large model alone."""
    STATIC = 1
    """Fixed weights, of any sign; 1.0 is proxy-tuning."""
    KL = 2
    """The paper's objective solved exactly over [0, alpha_max], one expert at a time."""
    KL_GRID = 3
    """The paper's Algorithm 1: the objective searched over the grid 0.0, 0.1 .. 2.0, one expert at a time."""
    ALONE = 4
    """One expert's own logits."""
    KL_JOINT = 5
    """Beyond the paper, an experiment: all weights at once. The Triton kernel lacks it and solves it as `KL`."""
    KL_SAFE = 6
    """Beyond the paper: every expert by its own targets, and the less the less it learned or the less sure it is."""


class Fused(NamedTuple):
    """What `fuse_logits` returns, for B rows, T experts and the V ids of the large model."""

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

    @property
    def fallback(self) -> Tensor:
        """[B] bool: a member that the row needed is broken, so the row is the large model alone."""
        return self.broken > 0
