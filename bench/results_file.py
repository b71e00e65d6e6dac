"""Where benchmarks keep what they measured: one CSV file each, under `bench/results`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def store(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows to `name`.csv, with every column that any of them has; return the file."""
    file = RESULTS / f"{name}.csv"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return file
