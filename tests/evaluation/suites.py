"""Writes small suites for the tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

ROWS = [{"question": "One?", "answer": "first"}, {"question": "Two?", "answer": "second"}]
TASK = {"data": "rows.jsonl", "metric": "exact", "prompt": "{question}", "answer": "{answer}"}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_suite(folder: Path, suite: Mapping[str, Any], rows: Iterable[Mapping[str, Any]] = ROWS) -> Path:
    """A suite in a folder, with `rows.jsonl` beside it."""
    write_rows(folder / "rows.jsonl", rows)
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(dict(suite), sort_keys=False))
    return path
