"""The bootstrap, against cases small enough to compute by hand or in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.bootstrap import DRAWS, Array, Draws, Scores, gap_closed, mean


def ones(count: int) -> Array:
    return np.ones(count)


def test_score_is_the_ratio_of_sums() -> None:
    score = Draws("task", 3, 0).score(np.array([6.0, 1.0, 5.0]), np.array([2.0, 1.0, 3.0]))
    assert score.value == 2.0
    assert score.draws.shape == (DRAWS,)


def test_draws_of_two_examples_have_the_exact_distribution() -> None:
    # Two out of two with replacement: both the first 1/4, one of each 1/2, both the second 1/4.
    draws = Draws("task", 2, 0).score(np.array([0.0, 1.0]), ones(2)).draws
    shares = [float(np.mean(draws == value)) for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_ratio_of_sums_is_drawn_with_its_weights() -> None:
    draws = Draws("task", 2, 0).score(np.array([1.0, 9.0]), np.array([1.0, 3.0])).draws
    assert set(np.round(draws, 9)) == {1.0, 2.5, 3.0}


def test_interval_of_a_share_is_that_of_the_binomial() -> None:
    count, right = 400, 100
    values = np.array([1.0] * right + [0.0] * (count - right))
    estimate = Draws("task", count, 0).score(values, ones(count)).estimate()
    width = 1.96 * math.sqrt(0.25 * 0.75 / count)
    assert (estimate.low, estimate.high) == pytest.approx((0.25 - width, 0.25 + width), abs=0.005)


def test_differences_are_paired() -> None:
    # One is always better by the same amount: the difference is certain, though both scores are not.
    values = np.array([0.0, 1.0, 5.0, 2.0])
    draws = Draws("task", 4, 0)
    difference = (draws.score(values + 0.5, ones(4)) - draws.score(values, ones(4))).estimate()
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.5, 0.5, 0.5))


def test_the_seed_and_the_task_decide_the_draws() -> None:
    values = np.array([float(number) for number in range(20)])

    def draws(task: str, seed: int) -> Array:
        return Draws(task, 20, seed).score(values, ones(20)).draws

    assert np.array_equal(draws("one", 0), draws("one", 0))
    assert not np.array_equal(draws("one", 0), draws("two", 0))
    assert not np.array_equal(draws("one", 0), draws("one", 1))


def fixed(value: float, *draws: float) -> Scores:
    return Scores(value, np.array(draws or (value,) * 4))


def test_gap_closed() -> None:
    closed = gap_closed(fixed(40.0, 30.0, 50.0), fixed(10.0, 10.0, 10.0), fixed(50.0, 50.0, 50.0))
    assert closed is not None
    assert closed.value == 75.0
    assert list(closed.draws) == [50.0, 100.0]


def test_gap_closed_has_the_same_sign_where_lower_is_better() -> None:
    closed = gap_closed(fixed(2.5), fixed(5.0), fixed(2.0))
    assert closed is not None
    assert closed.value == pytest.approx(100 * 2.5 / 3)


def test_no_share_of_a_gap_that_may_be_none() -> None:
    tuned = Scores(10.5, np.array([9.0, 10.0, 11.0, 12.0]))
    assert gap_closed(fixed(11.0), fixed(10.0), tuned) is None


def test_a_draw_without_a_gap_is_left_out() -> None:
    draws = np.full(1000, 20.0)
    draws[:5] = 10.0
    closed = gap_closed(Scores(15.0, np.full(1000, 15.0)), Scores(10.0, np.full(1000, 10.0)), Scores(20.0, draws))
    assert closed is not None
    assert closed.estimate().low == closed.estimate().high == 50.0


def test_mean_over_tasks() -> None:
    both = mean([Scores(1.0, np.array([1.0, 2.0])), Scores(3.0, np.array([3.0, 6.0]))])
    assert both.value == 2.0
    assert list(both.draws) == [2.0, 4.0]
