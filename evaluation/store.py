"""The answers that were given so far: an append-only file, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Record = dict[str, Any]


class Store:
    """`records.jsonl` in a folder: one answer a line, under a key that says all that it depends on."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._records: dict[str, Record] = {}
        whole = 0
        if path.is_file():
            content = path.read_bytes()
            # A run that was killed while it wrote leaves half a line behind.
            whole = content.rfind(b"\n") + 1
            for line in content[:whole].splitlines():
                record = json.loads(line)
                self._records[record["key"]] = record
        self._file = path.open("a", encoding="utf-8")
        self._file.truncate(whole)

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> Record:
        return self._records[key]

    def add(self, record: Record) -> None:
        """Keep a record, on disk before this returns."""
        self._records[record["key"]] = record
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
