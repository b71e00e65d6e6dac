"""What is recommended follows from the paired intervals, and nothing is where nothing helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.advice import advise, to_markdown
from evaluation.examples import Example
from evaluation.plan import plan
from evaluation.run import Results
from evaluation.suite import load_suite
from tests.evaluation.suites import TASK, write_suite

SETTINGS = {
    "large": {"weighting": "none"},
    "expert alone": {"weighting": "alone"},
    "static 1.0": {"weighting": "static", "alpha": 1.0},
    "kl": {"weighting": "kl"},
}


def results(folder: Path, metric: str, values: dict[str, list[float]]) -> Results:
    """Each setting's value on every example of one task."""
    task = {**TASK, "metric": metric, "expert": "places"}
    suite = load_suite(write_suite(folder, {"tasks": {"held out": task}, "settings": SETTINGS}))
    tables = plan(suite)
    records = {
        cell: [{"value": value, "weight": 1.0} for value in values[column]]
        for (_, column), cell in tables[0].cells.items()
    }
    return Results(suite, tables, {"held out": [Example("", "")] * len(values["large"])}, records)


def test_the_best_weighting_with_its_lead(tmp_path: Path) -> None:
    found = results(
        tmp_path,
        "exact",
        {"large": [0] * 40, "expert alone": [1, 0, 0, 0] * 10, "static 1.0": [1, 0] * 20, "kl": [1, 1, 1, 0] * 10},
    )
    (advice,) = advise(found, seed=0)
    assert advice.setting == "kl"
    text = to_markdown([advice])
    assert "Serve the preset {experts: [places], weighting: kl, alpha_max: 2.0}." in text
    assert "ahead of the large model alone by 75.0 [" in text
    assert "ahead of the expert alone by 50.0 [" in text
    assert "chance" not in text


def test_of_nats_less_is_better(tmp_path: Path) -> None:
    values = {"large": [3.0, 2.0] * 20, "expert alone": [1.1, 0.9] * 20, "static 1.0": [1.0] * 40, "kl": [2.0] * 40}
    (advice,) = advise(results(tmp_path, "nll", values), seed=0)
    assert advice.setting == "static 1.0"
    text = to_markdown([advice])
    assert "weighting: static, alpha: 1.0}" in text
    assert "by 1.500 [" in text
    assert "which may be chance" in text


def test_an_expert_that_needs_no_large_model(tmp_path: Path) -> None:
    values = {"large": [0.0] * 40, "expert alone": [1.0] * 40, "static 1.0": [1.0, 0.0] * 20, "kl": [0.0] * 40}
    (advice,) = advise(results(tmp_path, "exact", values), seed=0)
    assert advice.setting == "expert alone"
    text = to_markdown([advice])
    assert "The expert alone does best, ahead by 50.0 [" in text
    assert "preset" not in text


def test_of_equals_it_is_the_preset_that_is_there(tmp_path: Path) -> None:
    found = results(
        tmp_path, "exact", {"large": [0] * 40, "expert alone": [0] * 40, "static 1.0": [0, 1] * 20, "kl": [1, 0] * 20}
    )
    assert advise(found, seed=0)[0].setting == "kl"


@pytest.mark.parametrize("metric", ["exact", "nll"])
def test_no_help_is_said_plainly(tmp_path: Path, metric: str) -> None:
    worst = [2.0 if metric == "nll" else 0.0] * 40
    values = {"large": [1.0, 0.0] * 20, "expert alone": worst, "static 1.0": [0.0, 1.0] * 20, "kl": [0.5] * 40}
    (advice,) = advise(results(tmp_path, metric, values), seed=0)
    assert advice.setting is None
    assert "Fusion does not help here" in to_markdown([advice])
