"""What one reply is worth: exact match, the right choice, or negative log-likelihood."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.client import Encoded, Reply
from evaluation.examples import Example, extract
from evaluation.suite import Metric, Task

# Finer than any difference that matters, coarser than what another batch's order of sums changes.
DECIMALS = 4
LOWER_IS_BETTER: frozenset[Metric] = frozenset({"nll"})


@dataclass(frozen=True)
class Score:
    """A task's score is the sum of values over the sum of weights. `output` is what it was judged by."""

    value: float
    weight: float
    output: str | list[float]


def score(task: Task, example: Example, encoded: Encoded, reply: Reply) -> Score:
    """Return the score of a reply.

    `exact`: 1 if the extracted parts are equal. `choice`: 1 if the right choice's log-likelihood is the highest, the
    first of equals winning. `nll`: nats, with the answer's tokens as the weight.
    """
    if task.metric == "exact":
        found = extract(task, reply.text)
        return Score(float(found is not None and found == extract(task, example.answer)), 1.0, reply.text)
    lengths = [len(ids) - encoded.start for ids in encoded.whole]
    totals = [round(total, DECIMALS) for total in reply.log_likelihoods]
    if task.metric == "nll":
        return Score(-totals[0], float(lengths[0]), totals)
    judged = [t / n for t, n in zip(totals, lengths, strict=True)] if task.normalise == "tokens" else totals
    return Score(float(judged.index(max(judged)) == example.right), 1.0, totals)
