"""Summaries, Markdown and plots of results made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluation.examples import Example
from evaluation.markdown import to_markdown
from evaluation.plan import TUNED, plan
from evaluation.plots import draw
from evaluation.report import MEAN, as_json, summarise
from evaluation.run import Results
from evaluation.suite import load_suite
from tests.evaluation.suites import TASK, write_suite

EXAMPLES = 40


def record(value: float, number: int, weight: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"value": value, "weight": weight, "output": "", "tokens": 10, "started": number, "seconds": 0.5, **more}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Of 40 examples large has 10 right, fine-tuned 30, expert alone 20, kl 25 on `one`; on `two` kl has them all."""
    (tmp_path / "upper.yaml").touch()
    tasks = {
        "one": {**TASK, "expert": "red", "upper": "tuned"},
        "two": {**TASK, "expert": "blue", "upper": "tuned"},
        "text": {**TASK, "metric": "nll", "expert": "red"},
    }
    settings = {"large": {"weighting": "none"}, "alone": {"weighting": "alone"}, "kl": {"weighting": "kl"}}
    suite = load_suite(write_suite(tmp_path, {"upper": "upper.yaml", "tasks": tasks, "settings": settings}))
    tables = plan(suite)
    right = {
        "one": {"large": 10, "alone": 20, "kl": 25, TUNED: 30},
        "two": {"large": 20, "alone": 20, "kl": 40, TUNED: 30},
    }
    records = {}
    for (task, column), cell in tables[0].cells.items():
        if task == "text":
            records[cell] = [record(float(number % 4), number, 2.0) for number in range(EXAMPLES)]
            continue
        more: Any = {"trace": {"tokens": ["a", " b"], "alpha": {"red": [0.5, None]}}} if column == "kl" else {}
        records[cell] = [record(float(number < right[task][column]), number, **more) for number in range(EXAMPLES)]
    return Results(suite, tables, {name: [Example("", "")] * EXAMPLES for name in tasks}, records)


def test_scores_gaps_and_differences(results: Results) -> None:
    (report,) = summarise(results, seed=0)
    one, two, text, mean = report.rows
    assert [row.name for row in report.rows] == ["one", "two", "text", MEAN]
    assert {column: estimate.value for column, estimate in one.scores.items()} == {
        "large": 25.0, "alone": 50.0, "kl": 62.5, TUNED: 75.0
    }  # fmt: skip
    assert one.gaps["kl"].value == pytest.approx(75.0)
    assert two.gaps["kl"].value == pytest.approx(200.0)
    assert TUNED not in one.gaps
    assert one.differences["kl - alone"].value == 12.5
    assert one.differences["kl - alone"].low > 0
    assert text.scores["kl"].value == pytest.approx(1.5 / 2.0)
    assert not text.gaps
    assert mean.scores["kl"].value == pytest.approx((62.5 + 100.0) / 2)
    assert mean.gaps["kl"].value == pytest.approx((75.0 + 200.0) / 2)
    # Mean scores: large 37.5, kl 81.25, fine-tuned 75.
    assert report.gaps_of_means["kl"].value == pytest.approx(100 * 43.75 / 37.5)


def test_tasks_in_nats_share_the_mean_of_the_gaps(results: Results) -> None:
    tasks = {**results.suite.tasks, "text": results.suite.tasks["text"].model_copy(update={"upper": "tuned"})}
    suite = results.suite.model_copy(update={"tasks": tasks})
    tables = plan(suite)
    nats = {"large": 4.0, "alone": 3.0, "kl": 2.5, TUNED: 2.0}
    records = dict(results.records)
    for column, value in nats.items():
        records[tables[0].cells["text", column]] = [record(value + number % 2, number) for number in range(EXAMPLES)]
    (report,) = summarise(Results(suite, tables, results.examples, records), seed=0)
    mean = report.rows[-1]
    assert not mean.scores
    assert mean.gaps["kl"].value == pytest.approx((75.0 + 200.0 + 75.0) / 3)
    assert mean.differences["kl - alone"].value == pytest.approx((25.0 + 200.0 + 25.0) / 3)
    assert not report.gaps_of_means
    lines = to_markdown([report]).splitlines()
    assert sum(line.startswith(f"| {MEAN} |") for line in lines) == 1, "its gaps, but no scores"


def test_speed_leaves_out_pauses(results: Results) -> None:
    (report,) = summarise(results, seed=0)
    # Ten tokens in each half second that anything was under way, whatever lay between.
    assert report.rows[0].tokens_per_second["kl"] == pytest.approx(20.0)


def test_the_same_seed_gives_the_same_report(results: Results) -> None:
    assert summarise(results, seed=3) == summarise(results, seed=3)
    assert summarise(results, seed=3) != summarise(results, seed=4)


def test_markdown(results: Results) -> None:
    text = to_markdown(summarise(results, seed=0))
    (line,) = [line for line in text.splitlines() if line.startswith("| one (exact) ")]
    assert line.startswith("| one (exact) | 25.0 [")
    assert "| kl - alone | +12.5 [" in text
    assert "| mean scores | " in text


def test_json_has_every_example(results: Results) -> None:
    saved = as_json(results, summarise(results, seed=0), 0)
    assert len(saved["cells"]) == 11
    assert all(len(cell["examples"]) == EXAMPLES for cell in saved["cells"])
    assert saved["tables"][0]["rows"][0]["scores"]["large"]["value"] == 25.0


def test_plots(results: Results, tmp_path: Path) -> None:
    made = draw(results, summarise(results, seed=0), tmp_path)
    assert [path.name for path in made] == [
        "single-task-scores.png", "single-task-alpha-one.png", "single-task-alpha-two.png"
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
