"""The plugin hook in a process that another one started: how such a process ends."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.engine import plugin


class Witness:
    """Writes a line when it is collected: in a cycle, so only the garbage collector finds it."""

    def __init__(self, file: Path) -> None:
        self.itself = self
        self.file = os.open(file, os.O_APPEND | os.O_WRONLY | os.O_CREAT)

    # By then there are no modules any more.
    def __del__(self, write: Callable[[int, bytes], int] = os.write) -> None:
        write(self.file, b"collected\n")


def _return() -> None:
    pass


def _leave() -> None:
    raise SystemExit


def _leave_with_3() -> None:
    sys.exit(3)


def _fail() -> None:
    raise ValueError("on purpose")


def process(file: Path, end: Callable[[], None]) -> None:
    plugin._end_quickly()
    module: Any = sys.modules[__name__]
    module.kept = Witness(file)
    atexit.register(lambda: file.write_text("exit functions\n"))
    end()


@pytest.mark.parametrize(
    ("end", "code", "written"),
    [
        (_return, 0, "exit functions\n"),
        (_leave, 0, "exit functions\n"),
        (_leave_with_3, 3, "exit functions\ncollected\n"),
        (_fail, 1, "exit functions\ncollected\n"),
    ],
)
def test_a_clean_end_collects_no_garbage(end: Callable[[], None], code: int, written: str, tmp_path: Path) -> None:
    file = tmp_path / "written"
    child = multiprocessing.get_context("spawn").Process(target=process, args=(file, end))
    child.start()
    child.join(60)
    assert child.exitcode == code
    assert file.read_text() == written
