"""The plots: scores as bars with their intervals, and how the weights move from token to token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from evaluation.plan import Cell, TablePlan
from evaluation.report import Row, TableReport
from evaluation.run import Results

# Past this, few answers are left to take a mean of.
FEWEST_ANSWERS = 3
LONGEST_EXAMPLE = 60


def draw(results: Results, reports: Sequence[TableReport], folder: Path) -> list[Path]:
    """Write all plots as PNG files and return their paths."""
    made = []
    for table, report in zip(results.tables, reports, strict=True):
        name = re.sub(r"[^a-z0-9]+", "-", report.title.lower()).strip("-")
        made.append(_draw_bars(report, folder / f"{name}-scores.png"))
        for task in table.tasks:
            traced = _traces(results, table, task)
            if traced:
                title = f"{report.title}: {task}"
                made.append(_draw_alphas(title, traced, folder / f"{name}-alpha-{task}.png"))
    return made


def _draw_bars(report: TableReport, path: Path) -> Path:
    """Bars of all columns for each task: percent on the left, nats per token on the right."""
    scored = [row for row in report.rows if row.scores]
    panels = [rows for nll in (False, True) if (rows := [r for r in scored if (r.metric == "nll") == nll])]
    widths = [len(rows) for rows in panels]
    figure = Figure(figsize=(3 + 2.4 * sum(widths), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)
    shades = colormaps["viridis"](np.linspace(0, 0.92, len(report.columns)))
    colours = dict(zip(report.columns, shades, strict=True))
    for rows, axis in zip(panels, axes[0], strict=True):
        _bars(axis, rows, colours)
    handles = [Patch(color=colour, label=column) for column, colour in colours.items()]
    figure.legend(handles=handles, fontsize="small", loc="outside right upper")
    figure.suptitle(report.title)
    return _save(figure, path)


def _bars(axis: Any, rows: Sequence[Row], colours: dict[str, Any]) -> None:
    width = 0.85 / len(colours)
    for index, (column, colour) in enumerate(colours.items()):
        found = [(x, row.scores[column]) for x, row in enumerate(rows) if column in row.scores]
        values = np.array([estimate.value for _, estimate in found])
        bounds = np.array([(estimate.low, estimate.high) for _, estimate in found]).T.reshape(2, -1)
        positions = [x + (index - (len(colours) - 1) / 2) * width for x, _ in found]
        axis.bar(positions, values, width, color=colour)
        axis.errorbar(positions, values, np.abs(bounds - values), fmt="none", ecolor="black", elinewidth=0.8)
    axis.set_xticks(range(len(rows)), [row.name for row in rows])
    axis.set_ylabel("nats per token (lower is better)" if rows[0].metric == "nll" else "score, %")
    axis.spines[["top", "right"]].set_visible(False)


def _traces(results: Results, table: TablePlan, task: str) -> dict[str, list[dict[str, Any]]]:
    """For each dynamic column, the traces of its answers."""
    cells: dict[str, Cell] = {c: table.cells[task, c] for c in table.columns if (task, c) in table.cells}
    found = {
        column: [record["trace"] for record in results.records.get(cell, ()) if record.get("trace")]
        for column, cell in cells.items()
        if cell.traced
    }
    return {column: traces for column, traces in found.items() if traces}


def _draw_alphas(title: str, traced: dict[str, list[dict[str, Any]]], path: Path) -> Path:
    """A row for each setting: the mean weight by position with the middle 80 %, and one answer, token by token."""
    figure = Figure(figsize=(13, 1 + 2.2 * len(traced)), layout="constrained")
    axes = figure.subplots(len(traced), 2, squeeze=False, sharey=True)
    for (column, traces), (left, right) in zip(traced.items(), axes, strict=True):
        _mean_alphas(left, traces)
        _example_alphas(right, traces[0])
        left.set_ylabel(f"{column}\nalpha")
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_title("all traced answers: mean, 10 % to 90 %", fontsize="medium")
    axes[0][1].set_title("the first answer", fontsize="medium")
    axes[-1][0].set_xlabel("token")
    axes[0][0].legend(fontsize="small")
    figure.suptitle(title)
    return _save(figure, path)


def _mean_alphas(axis: Any, traces: Sequence[dict[str, Any]]) -> None:
    for expert in traces[0]["alpha"]:
        rows = [[value for value in trace["alpha"][expert] if value is not None] for trace in traces]
        enough = min(FEWEST_ANSWERS, len(rows))
        columns = []
        for position in range(max(map(len, rows))):
            column = [row[position] for row in rows if len(row) > position]
            if len(column) < enough:
                break
            columns.append((np.mean(column), *np.quantile(column, (0.1, 0.9))))
        mean, low, high = np.array(columns).reshape(-1, 3).T
        (line,) = axis.plot(mean, label=expert)
        axis.fill_between(range(len(mean)), low, high, alpha=0.2, color=line.get_color(), linewidth=0)


def _example_alphas(axis: Any, trace: dict[str, Any]) -> None:
    for expert, alphas in trace["alpha"].items():
        axis.plot([np.nan if a is None else a for a in alphas[:LONGEST_EXAMPLE]], drawstyle="steps-mid", label=expert)
    tokens = [_shown(token) for token in (trace["tokens"] or ())[:LONGEST_EXAMPLE]]
    axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=6, parse_math=False)


def _shown(token: str) -> str:
    """A token as one visible word."""
    return token.replace("\n", "\\n").replace(" ", "\u00b7")


def _save(figure: Figure, path: Path) -> Path:
    # Without the version of matplotlib in it, the same numbers give the same file.
    figure.savefig(path, dpi=130, metadata={"Software": None})
    return path
