"""The suite's file: what it means, and what is said of one that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluation.plan import TUNED, plan
from evaluation.suite import load_suite, narrow
from server.errors import ConfigError
from tests.evaluation.suites import TASK, write_rows, write_suite
from zoo import FAMILY


def suite_of(folder: Path, **sections: Any) -> Any:
    return load_suite(write_suite(folder, {"tasks": {"quiz": {**TASK, "expert": "red"}}, **sections}))


def test_five_lines_are_a_suite(tmp_path: Path) -> None:
    suite = suite_of(tmp_path)
    assert suite.tasks["quiz"].data == tmp_path / "rows.jsonl"
    assert list(suite.settings)[:5] == ["large", "expert alone", "static 0.5", "static 1.0", "static 1.5"]
    assert {"kl-grid", "kl"} <= set(suite.settings)
    (table,) = plan(suite)
    assert table.title == "Single task"
    assert [cell.fusion_field for cell in table.cells.values()][:3] == [
        {"weighting": "none"},
        {"weighting": "alone", "experts": ["red"]},
        {"weighting": "static", "experts": ["red"], "alpha": 0.5},
    ]
    assert table.cells["quiz", "kl"].fusion_field == {"weighting": "kl", "experts": ["red"], "alpha_max": 2.0}


def test_tables_choose_experts(tmp_path: Path) -> None:
    suite = load_suite(
        write_suite(
            tmp_path,
            {
                "tasks": {
                    "one": {**TASK, "expert": "red"},
                    "two": {**TASK, "expert": "blue"},
                    "unseen": TASK,
                },
                "settings": {
                    "large": {"weighting": "none"},
                    "alone": {"weighting": "alone"},
                    "kl": {"weighting": "kl"},
                },
                "tables": {"Own": {}, "All": {"experts": "all"}, "Mixed": {"experts": ["mix"], "tasks": ["unseen"]}},
            },
        )
    )
    own, everything, mixed = plan(suite)
    assert own.tasks == ("one", "two")
    assert everything.tasks == ("one", "two", "unseen")
    assert everything.cells["unseen", "kl"].fusion_field["experts"] == ["red", "blue"]
    assert everything.cells["two", "alone"].fusion_field["experts"] == ["blue"]
    assert ("unseen", "alone") not in everything.cells
    assert mixed.cells["unseen", "alone"].fusion_field["experts"] == ["mix"]
    assert own.cells["one", "large"] == everything.cells["one", "large"]


def test_a_router_chooses_the_experts() -> None:
    """The suite that compares routing: what is asked names the preset and no experts."""
    suite = load_suite(FAMILY / "evaluation" / "routing.yaml")
    table = next(table for table in plan(suite) if "auto, kl" in table.columns)
    cell = table.cells["facts", "auto, kl"]
    assert cell.fusion_field == {"weighting": "kl", "route": "giant-auto", "alpha_max": 2.0}
    assert table.cells["quiz", "auto, kl"].fusion_field == cell.fusion_field


def test_upper_bounds_are_a_column(tmp_path: Path) -> None:
    (tmp_path / "upper.yaml").write_text("large: {}\n")
    tasks = {"one": {**TASK, "expert": "red", "upper": "tuned"}, "two": {**TASK, "expert": "red"}}
    tables = {"Own": {}, "All": {"experts": "all", "upper": "tuned-on-all"}}
    own, everything = plan(load_suite(write_suite(tmp_path, {"upper": "upper.yaml", "tasks": tasks, "tables": tables})))
    assert own.columns[-1] == TUNED
    assert own.cells["one", TUNED].upper == "tuned"
    assert ("two", TUNED) not in own.cells
    assert everything.cells["two", TUNED].upper == "tuned-on-all"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"taks": {}}, "unknown key 'taks'; did you mean 'tasks'?"),
        ({"tasks": {}}, "tasks: at least one task is needed"),
        ({"tasks": {"quiz": {**TASK, "promt": "x"}}}, "unknown key 'promt' in tasks.quiz; did you mean 'prompt'?"),
        ({"tasks": {"quiz": {"data": "rows.jsonl", "metric": "exact"}}}, "tasks.quiz lacks the key 'answer'"),
        (
            {"tasks": {"quiz": {"data": "rows.jsonl", "metric": "exact", "answer": "{answer}"}}},
            "tasks.quiz: one of prompt, a template, and messages, the field that holds a conversation, is needed",
        ),
        ({"tasks": {"quiz": {**TASK, "messages": "turns"}}}, "tasks.quiz: one of prompt, a template, and messages"),
        ({"tasks": {"quiz": {**TASK, "data": "none.jsonl"}}}, "tasks.quiz.data: there is no file 'none.jsonl'"),
        ({"tasks": {"quiz": {**TASK, "metric": "exactly"}}}, "'exactly' is not one of exact, choice, nll; did you"),
        ({"tasks": {"quiz": {**TASK, "metric": "choice"}}}, "metric 'choice' needs choices"),
        ({"tasks": {"quiz": {**TASK, "metric": "nll", "stop": ["."]}}}, "stop is only for metric 'exact'"),
        ({"tasks": {"quiz": {**TASK, "extract": "(["}}}, "tasks.quiz.extract: '([' is not a regular expression"),
        ({"tasks": {"quiz": {**TASK, "limit": 0}}}, "tasks.quiz.limit: "),
        ({"tasks": {"quiz": {**TASK, "upper": "tuned"}}}, "tasks.quiz.upper: the suite has no 'upper'"),
        ({"settings": {"static": {"weighting": "static"}}}, "settings.static: weighting 'static' needs a number"),
        ({"settings": {"kl": {"weighting": "kl", "alpha": 1}}}, "settings.kl: only weighting 'static' takes it"),
        ({"settings": {"kl": {"weighting": "kll"}}}, "'kll' is not one of"),
        ({"tables": {"T": {"tasks": ["quizz"]}}}, "tables.T.tasks: there is no task 'quizz'; did you mean 'quiz'?"),
        ({"tables": {"T": {"settings": ["klgrid"]}}}, "tables.T.settings: there is no setting 'klgrid'; did you mean"),
        ({"tables": {"T": {"experts": []}}}, "tables.T.experts: at least one expert is needed"),
        ({"tables": {"T": {"shots": 2}}}, "tables.T.shots: task 'quiz' has no train"),
    ],
)
def test_faults_are_named(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as fault:
        suite_of(tmp_path, **sections)
    assert message in str(fault.value)
    assert str(tmp_path / "suite.yaml") in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_missing_suite_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"suite\.yaml"):
        load_suite(tmp_path / "suite.yaml")


def test_narrowing_keeps_what_all_experts_means(tmp_path: Path) -> None:
    tasks = {"one": {**TASK, "expert": "red"}, "two": {**TASK, "expert": "blue", "limit": 1}}
    tables = {"Own": {"tasks": ["two"]}, "All": {"experts": "all"}}
    suite = load_suite(write_suite(tmp_path, {"tasks": tasks, "tables": tables}))
    narrowed = narrow(suite, ["one"], 2, None)
    assert list(narrowed.tables) == ["All"]
    (table,) = plan(narrowed)
    assert table.tasks == ("one",)
    assert table.cells["one", "kl"].fusion_field["experts"] == ["red", "blue"]
    assert [task.limit for task in narrowed.tasks.values()] == [2, 1]


@pytest.mark.parametrize(
    ("tasks", "shots", "message"),
    [
        (["quizz"], None, "--task quizz: there is no such task; did you mean 'quiz'?"),
        ([], 1, "--shots 1: task 'quiz' has no train"),
    ],
)
def test_narrowing_names_faults(tmp_path: Path, tasks: list[str], shots: int | None, message: str) -> None:
    with pytest.raises(ConfigError) as fault:
        narrow(suite_of(tmp_path), tasks, None, shots)
    assert message in str(fault.value)


def test_shots_are_set_for_all_tables(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"question": "Zero?", "answer": "none"}])
    suite = load_suite(write_suite(tmp_path, {"tasks": {"quiz": {**TASK, "expert": "red", "train": "train.jsonl"}}}))
    assert [table.shots for table in narrow(suite, [], None, 1).tables.values()] == [1]
