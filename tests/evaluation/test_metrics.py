"""What a reply is worth, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluation.client import Encoded, Reply
from evaluation.examples import Example
from evaluation.metrics import score
from evaluation.suite import Task


def task_of(folder: Path, metric: str, **keys: Any) -> Task:
    (folder / "rows.jsonl").touch()
    values = {"data": "rows.jsonl", "metric": metric, "prompt": "{q}", "answer": "{a}", **keys}
    return Task.model_validate(values, context={"folder": folder})


@pytest.mark.parametrize(("text", "value"), [(" 42\n", 1.0), ("42.", 0.0), ("", 0.0)])
def test_exact(tmp_path: Path, text: str, value: float) -> None:
    result = score(task_of(tmp_path, "exact"), Example("q", "42"), Encoded([1], [], 1), Reply(0, 0, 1, text=text))
    assert (result.value, result.weight, result.output) == (value, 1.0, text)


@pytest.mark.parametrize(("text", "value"), [("so\n#### 42", 1.0), ("#### 42\n#### 41", 0.0), ("42", 0.0)])
def test_exact_of_extracts(tmp_path: Path, text: str, value: float) -> None:
    task = task_of(tmp_path, "exact", extract="#### (.+)")
    example = Example("q", "40 + 2\n#### 42")
    assert score(task, example, Encoded([1], [], 1), Reply(0, 0, 1, text=text)).value == value


@pytest.mark.parametrize(("normalise", "right"), [("none", 0), ("tokens", 1)])
def test_choice(tmp_path: Path, normalise: str, right: int) -> None:
    # The second choice is less likely as a whole, and more likely per token.
    task = task_of(tmp_path, "choice", choices="c", normalise=normalise)
    encoded = Encoded([1, 2], [[1, 2, 3], [1, 2, 4, 5, 6]], 2)
    reply = Reply(0, 0, 1, log_likelihoods=[-2.0, -3.0])
    values = [score(task, Example("q", "", ("a", "b"), number), encoded, reply).value for number in (0, 1)]
    assert values == [float(right == 0), float(right == 1)]


def test_the_first_of_equal_choices_wins(tmp_path: Path) -> None:
    task = task_of(tmp_path, "choice", choices="c")
    reply = Reply(0, 0, 1, log_likelihoods=[-2.00001, -2.0])
    assert score(task, Example("q", "", ("a", "b"), 0), Encoded([1], [[1, 2], [1, 3]], 1), reply).value == 1.0


def test_nll(tmp_path: Path) -> None:
    encoded = Encoded([1, 2], [[1, 2, 3, 4, 5]], 2)
    result = score(task_of(tmp_path, "nll"), Example("q", "a"), encoded, Reply(0, 0, 5, log_likelihoods=[-4.5]))
    assert (result.value, result.weight) == (4.5, 3.0)
