"""What the records say: each table's scores, gaps closed, paired differences and speed, with intervals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evaluation.bootstrap import DRAWS, Draws, Estimate, Scores, gap_closed, mean
from evaluation.decoding import GREEDY
from evaluation.plan import TUNED, TablePlan
from evaluation.run import Results
from evaluation.store import Record
from evaluation.suite import Metric, Setting, Suite

MEAN = "mean of seen tasks"


@dataclass(frozen=True)
class Row:
    """One task, or the mean of several, across a table's columns; a column is left out where it has no answer."""

    name: str
    metric: Metric | None
    scores: dict[str, Estimate]
    gaps: dict[str, Estimate]
    differences: dict[str, Estimate]
    tokens_per_second: dict[str, float]


@dataclass(frozen=True)
class TableReport:
    """A table's rows, the pairs of columns that are compared, and the gap closed by the mean scores.

    The mean's row has the mean of the tasks' gaps; the gap of the mean scores weighs tasks by how wide their gaps are.
    Where a task is scored in nats there is no mean score, and the mean's row compares gaps.
    """

    title: str
    columns: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    rows: list[Row]
    gaps_of_means: dict[str, Estimate]


def summarise(results: Results, seed: int) -> list[TableReport]:
    """Return what each table shows. Scores of `exact` and `choice` are in percent, of `nll` in nats per token."""
    draws = {name: Draws(name, len(examples), seed) for name, examples in results.examples.items()}
    return [_summarise_table(results, table, draws) for table in results.tables]


def as_json(results: Results, reports: Iterable[TableReport], seed: int) -> dict[str, Any]:
    """Return everything as one JSON object: the reports, and each cell's outcome on every example."""
    kept = ("value", "weight", "output", "trace")
    cells = [
        {
            "task": cell.task,
            "shots": cell.shots,
            **({"upper": cell.upper} if cell.upper is not None else {"fusion": cell.fusion_field}),
            "examples": [{key: record[key] for key in kept if key in record} for record in records],
        }
        for cell, records in results.records.items()
    ]
    tables = [asdict(report) for report in reports]
    return {"seed": seed, "draws": DRAWS, "decoding": GREEDY, "tables": tables, "cells": cells}


def _summarise_table(results: Results, table: TablePlan, draws: dict[str, Draws]) -> TableReport:
    columns = tuple(c for c in table.columns if any(table.cells.get((t, c)) in results.records for t in table.tasks))
    pairs = _pairs(results.suite, columns)
    scores: dict[str, dict[str, Scores]] = {}
    gaps: dict[str, dict[str, Scores]] = {}
    rows = []
    for name in table.tasks:
        records = {c: results.records[table.cells[name, c]] for c in columns if (name, c) in table.cells}
        metric = results.suite.tasks[name].metric
        scores[name] = {c: score_records(draws[name], metric, found) for c, found in records.items()}
        gaps[name] = _gaps(results.suite, scores[name])
        # The fine-tuned models' server has other members beside them: its speed says nothing here.
        speeds = {c: _tokens_per_second(found) for c, found in records.items() if c != TUNED}
        rows.append(_row(name, metric, scores[name], gaps[name], pairs, speeds))
    seen = [t for t in table.tasks if results.suite.tasks[t].expert]
    in_percent = [t for t in seen if results.suite.tasks[t].metric != "nll"]
    # Nats and percent have no common mean, but their gaps have.
    apart = [t for t in seen if gaps[t]] if any(gaps[t] for t in seen if t not in in_percent) else []
    gaps_of_means: dict[str, Scores] = {}
    if len(apart or in_percent) > 1:
        means = {} if apart else _means(columns, in_percent, scores)
        gaps_of_means = _gaps(results.suite, means)
        rows.append(_row(MEAN, None, means, _means(columns, apart or in_percent, gaps), pairs, {}))
    estimates = {column: gap.estimate() for column, gap in gaps_of_means.items()}
    return TableReport(table.title, columns, pairs, rows, estimates)


def _row(
    name: str,
    metric: Metric | None,
    scores: dict[str, Scores],
    gaps: dict[str, Scores],
    pairs: Iterable[tuple[str, str]],
    speeds: dict[str, float],
) -> Row:
    compared = scores or gaps
    return Row(
        name,
        metric,
        {column: score.estimate() for column, score in scores.items()},
        {column: gap.estimate() for column, gap in gaps.items()},
        {f"{a} - {b}": (compared[a] - compared[b]).estimate() for a, b in pairs if a in compared and b in compared},
        speeds,
    )


def score_records(draws: Draws, metric: Metric, records: list[Record]) -> Scores:
    """Return a cell's score: in percent, or in nats per token."""
    values, weights = (np.array([record[key] for record in records], float) for key in ("value", "weight"))
    return draws.score(values, weights) * (1.0 if metric == "nll" else 100.0)


def _gaps(suite: Suite, scores: dict[str, Scores]) -> dict[str, Scores]:
    large = next((c for c in scores if c != TUNED and suite.settings[c].weighting == "none"), None)
    if large is None or TUNED not in scores:
        return {}
    found = {c: gap_closed(score, scores[large], scores[TUNED]) for c, score in scores.items() if c != large}
    return {c: gap for c, gap in found.items() if gap is not None and c != TUNED}


def _means(columns: Iterable[str], tasks: list[str], found: dict[str, dict[str, Scores]]) -> dict[str, Scores]:
    """Each column's mean over the tasks, where all of them have it."""
    whole = [column for column in columns if all(column in found[task] for task in tasks)]
    return {column: mean([found[task][column] for task in tasks]) for column in whole}


def _pairs(suite: Suite, columns: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Which columns are compared: every dynamic weighting with all that is not dynamic, and with those before it."""
    named: dict[str, Setting] = {column: suite.settings[column] for column in columns if column != TUNED}
    dynamic = [column for column, setting in named.items() if setting.dynamic]
    fixed = [column for column in named if column not in dynamic]
    pairs = [(column, other) for column in dynamic for other in fixed]
    return (*pairs, *((b, a) for i, a in enumerate(dynamic) for b in dynamic[i + 1 :]))


def _tokens_per_second(records: list[Record]) -> float:
    """Tokens over the time in which at least one request was under way: pauses between runs do not count."""
    busy, end = 0.0, 0.0
    for record in sorted(records, key=lambda record: float(record["started"])):
        started, until = record["started"], record["started"] + record["seconds"]
        busy += max(0.0, until - max(started, end))
        end = max(end, until)
    tokens: float = sum(record["tokens"] for record in records)
    return tokens / busy if busy else 0.0
