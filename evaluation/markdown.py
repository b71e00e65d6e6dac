"""The reports as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evaluation.bootstrap import Estimate
from evaluation.decoding import GREEDY
from evaluation.plan import TUNED
from evaluation.report import Row, TableReport

NOTE = """\
Scores of `exact` and `choice` are in percent, of `nll` in nats per token (lower is better). In brackets: 95 %
intervals, by a bootstrap over examples, paired where settings are compared. Gap closed: (setting - large) /
(fine-tuned - large) in percent, on the same examples; empty where the interval of fine-tuned - large holds zero.
"mean of seen tasks" is the mean of the tasks' own numbers, "mean scores" the gap closed by the tasks' mean score; where
a task is scored in nats there is no mean score, and the mean's differences are those of the gap closed.
"""
DECODING = f"""\
Every request, also those to the fine-tuned models, was sent with
{", ".join(f"{name} {value:g}" for name, value in GREEDY.items())}: greedy, whatever the servers' own defaults are.
"""


def to_markdown(reports: Iterable[TableReport]) -> str:
    """Return all tables, with a note on how to read them."""
    return "\n".join(["# Evaluation", "", NOTE, DECODING, *(_table(report) for report in reports)])


def _table(report: TableReport) -> str:
    lines = [f"## {report.title}", "", *_grid("score", report.columns, _scores(report)), ""]
    gaps = {row.name: row.gaps for row in report.rows} | {"mean scores": report.gaps_of_means}
    if any(gaps.values()):
        columns = [c for c in report.columns if any(c in found for found in gaps.values())]
        cells = [[name, *(_estimate(found.get(c), 1) for c in columns)] for name, found in gaps.items() if found]
        lines += ["Gap closed:", "", *_grid("%", columns, cells), ""]
    if report.pairs:
        names = [row.name for row in report.rows]
        cells = [
            [f"{a} - {b}", *(_estimate(row.differences.get(f"{a} - {b}"), _digits(row), "+") for row in report.rows)]
            for a, b in report.pairs
        ]
        lines += ["Differences:", "", *_grid("difference of scores", names, cells), ""]
    columns = [column for column in report.columns if column != TUNED]
    speeds = {row.name: row.tokens_per_second for row in report.rows if row.tokens_per_second}
    cells = [[name, *(_speed(found.get(c)) for c in columns)] for name, found in speeds.items()]
    lines += ["Tokens per second, generated for `exact`, read for the others:", ""]
    return "\n".join([*lines, *_grid("tokens/s", columns, cells), ""])


def _scores(report: TableReport) -> list[list[str]]:
    return [
        [
            row.name if row.metric is None else f"{row.name} ({row.metric})",
            *(_estimate(row.scores.get(column), _digits(row)) for column in report.columns),
        ]
        for row in report.rows
        if row.scores
    ]


def _digits(row: Row) -> int:
    return 3 if row.metric == "nll" else 1


def _estimate(estimate: Estimate | None, digits: int, sign: str = "") -> str:
    if estimate is None:
        return ""
    # What rounds to zero has no sign.
    value, low, high = (round(number, digits) + 0.0 for number in (estimate.value, estimate.low, estimate.high))
    return f"{value:{sign}.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _speed(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _grid(corner: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    heads = [corner, *(f"**{column}**" if column == TUNED else column for column in columns)]
    return [_line(heads), _line(["---", *("---:" for _ in columns)]), *map(_line, rows)]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
