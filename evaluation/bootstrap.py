"""Paired bootstrap over a task's examples: intervals of scores, of their differences, and of the gap closed.

Every setting answers the same examples, so one draw of examples is used for all settings at once: what makes an
example hard for all of them then does not widen the interval of a difference.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 5_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number, and the interval that holds 95 % of its bootstrap draws."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """A score on all examples, and on each draw of examples [DRAWS]."""

    value: float
    draws: Array

    def __sub__(self, other: Scores) -> Scores:
        """Return the difference, draw by draw: paired."""
        return Scores(self.value - other.value, self.draws - other.draws)

    def __mul__(self, factor: float) -> Scores:
        return Scores(self.value * factor, self.draws * factor)

    def estimate(self) -> Estimate:
        """Return the score with its percentile interval."""
        low, high = np.nanquantile(self.draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(self.value, float(low), float(high))


class Draws:
    """The draws of one task's examples, shared by all its settings."""

    def __init__(self, task: str, examples: int, seed: int) -> None:
        """Draw `examples` out of as many, with replacement, `DRAWS` times; another task draws other ones."""
        generator = np.random.default_rng([seed, zlib.crc32(task.encode())])
        # How often each example was drawn is all that a mean needs to know.
        self._counts: Array = generator.multinomial(examples, np.full(examples, 1 / examples), DRAWS).astype(float)

    def score(self, values: Array, weights: Array) -> Scores:
        """Return sum(values) / sum(weights), over all examples and over each draw.

        Args:
            values: [N], such as 1 for a right answer, or an answer's negative log-likelihood in nats.
            weights: [N], such as 1, or an answer's tokens.
        """
        return Scores(float(values.sum() / weights.sum()), (self._counts @ values) / (self._counts @ weights))


def mean(scores: list[Scores]) -> Scores:
    """Return the mean over tasks, each with its own draws."""
    return Scores(float(np.mean([score.value for score in scores])), np.mean([score.draws for score in scores], axis=0))


def gap_closed(fused: Scores, large: Scores, tuned: Scores) -> Scores | None:
    """Return (fused - large) / (tuned - large) in percent; None where there is no gap to speak of.

    That is where the interval of tuned - large holds zero: a share of it would be a share of noise.
    """
    gap = tuned - large
    whole = gap.estimate()
    if whole.low <= 0 <= whole.high:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = 100 * (fused.draws - large.draws) / gap.draws
    # A draw without any gap has no share of it, and is left out of the interval.
    draws = np.where(np.isfinite(draws), draws, np.nan)
    return Scores(100 * (fused.value - large.value) / gap.value, draws)
