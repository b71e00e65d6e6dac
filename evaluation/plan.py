"""What is to be asked: the cells of all tables, each once, however many tables show it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from evaluation.decoding import GREEDY
from evaluation.examples import Example
from evaluation.suite import Suite, Table, Task

TUNED = "fine-tuned"
# Computed here, teacher-forced: it has no answers of its own.
JOINT = "kl-joint"


@dataclass(frozen=True)
class Cell:
    """One task under one setting: a `fusion` field, as JSON, or a preset of the upper bound's server."""

    task: str
    setting: str = field(compare=False)
    shots: int
    fusion: str = ""
    upper: str | None = None
    traced: bool = field(default=False, compare=False)

    @property
    def fusion_field(self) -> dict[str, Any]:
        """What the request's `fusion` is; empty for the upper bound, whose preset says all."""
        return json.loads(self.fusion) if self.fusion else {}

    @property
    def name(self) -> str:
        """The cell, in errors and on the progress bar."""
        shots = f", {self.shots} shots" if self.shots else ""
        return f"{self.task}, {self.setting}{shots}"

    def key(self, fingerprint: str, task: Task, example: Example, shots: Iterable[Example]) -> str:
        """Return the name of one answer in the store: a digest of all that the answer and its score depend on."""
        asked = task.model_dump(include={"metric", "chat", "max_tokens", "stop", "extract", "normalise"})
        parts = [fingerprint, asked, vars(example), [vars(s) for s in shots], self.fusion, self.upper, GREEDY]
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class TablePlan:
    """A table's tasks and columns, and the cell at each crossing that has one."""

    title: str
    tasks: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]


def plan(suite: Suite) -> list[TablePlan]:
    """Return what each table holds; equal cells of two tables are equal, and asked once."""
    return [_plan_table(suite, title, table) for title, table in suite.tables.items()]


def _plan_table(suite: Suite, title: str, table: Table) -> TablePlan:
    tasks, columns = suite.tasks_of(table), list(suite.settings_of(table))
    cells = {}
    for name in tasks:
        task = suite.tasks[name]
        for column in columns:
            experts = suite.experts_of(table, name, column)
            setting = suite.settings[column]
            if experts is None or (setting.weighting == JOINT and task.metric == "exact"):
                continue
            fusion = json.dumps(setting.field(experts), sort_keys=True)
            traced = setting.dynamic and task.metric == "exact"
            cells[name, column] = Cell(name, column, table.shots, fusion, traced=traced)
        if (upper := table.upper or task.upper) is not None:
            cells[name, TUNED] = Cell(name, TUNED, table.shots, upper=upper)
    if any(column == TUNED for _, column in cells):
        columns.append(TUNED)
    return TablePlan(title, tasks, tuple(columns), cells)
