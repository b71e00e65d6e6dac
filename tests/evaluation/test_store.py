"""The file of answers: what it holds survives, whatever the run that wrote it did last."""

from __future__ import annotations

from pathlib import Path

from evaluation.store import Store


def test_records_come_back(tmp_path: Path) -> None:
    path = tmp_path / "out" / "records.jsonl"
    with Store(path) as store:
        store.add({"key": "a", "output": "été\n"})
        store.add({"key": "b", "output": ""})
    with Store(path) as store:
        assert "a" in store
        assert "c" not in store
        assert store["a"]["output"] == "été\n"


def test_half_a_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with Store(path) as store:
        store.add({"key": "a"})
    with path.open("a") as file:
        file.write('{"key": "b", "outp')
    with Store(path) as store:
        assert "b" not in store
        store.add({"key": "c"})
    assert path.read_text() == '{"key": "a"}\n{"key": "c"}\n'
