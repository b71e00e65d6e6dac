"""Phases of long work: drawn in a terminal, lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import sys
import time
from pathlib import Path

import pytest

from server import progress
from server.progress import Phases

LINE = re.compile(r"^(.+): \d+\.\d s(?:, (.+))?$")


def shape(lines: list[str]) -> list[tuple[str, str | None]]:
    """Phase and note of each line."""
    found = [LINE.match(line) for line in lines]
    assert all(found), lines
    return [(match[1], match[2]) for match in found if match]


def test_a_line_for_each_phase_when_it_is_over() -> None:
    lines: list[str] = []
    with Phases(lines.append, terminal=False) as phases:
        phases.begin("checking")
        assert phases.current == "checking"
        assert lines == []
        phases.begin("loading large", 100)
        phases.update(50)
        phases.update(100, "two files")
        phases.end("and 7 tokens")
        phases.end()
        phases.begin("warming")
    assert shape(lines) == [("checking", None), ("loading large", "and 7 tokens"), ("warming", None)]


def test_seconds_are_those_of_the_phase() -> None:
    lines: list[str] = []
    with Phases(lines.append, terminal=False) as phases:
        phases.begin("short")
        phases.begin("long")
        time.sleep(0.25)
    assert lines[0] == "short: 0.0 s"
    assert 0.2 <= float(lines[1].split()[1]) < 5


def test_a_long_phase_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REMINDER_SECONDS", 0.0)
    lines: list[str] = []
    with Phases(lines.append, terminal=False) as phases:
        phases.begin("loading large", 200)
        phases.update(50)
        while not lines:
            time.sleep(0.01)
    assert re.fullmatch(r"loading large: 25% after \d+ s", lines[0])


def test_a_fault_ends_the_phases_without_a_word() -> None:
    lines: list[str] = []

    def work() -> None:
        with Phases(lines.append, terminal=False) as phases:
            phases.begin("checking")
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert lines == []


def test_a_terminal_shows_bars_and_keeps_the_last_phases(tmp_path: Path) -> None:
    code = """
from server.progress import Phases
with Phases() as phases:
    for number in range(40):
        phases.begin(f"loading member {number}", 100)
        phases.update(30)
    phases.update(100, "a note")
"""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", COLUMNS="120", LINES="24")
        os.execv(sys.executable, [sys.executable, "-c", code])
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # the other side is closed
            break
    assert os.waitpid(pid, 0)[1] == 0
    last = shown.decode().split("loading member 28")[-1]
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last)
    assert "loading member 39" in text
    assert "100%" in text
    assert "a note" in text
    assert "loading member 5 " not in text
