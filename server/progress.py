"""Long work shows itself: its phases with their seconds, drawn in a terminal, and as one line each elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Say = Callable[[str], None]
"""Takes a finished line, where there is no terminal to draw in."""

# Where nothing is drawn, a phase that takes long says so once in so many seconds.
REMINDER_SECONDS = 30.0
# More lines than a terminal has would not be drawn at all.
FINISHED_KEPT = 12


def say(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr, flush=True)


class Phases:
    """One piece of long work, phase after phase; a context manager, to be used from any thread.

    A terminal shows every phase with its seconds, and with a bar where it is known how much there is to do. Elsewhere
    each phase becomes a line when it is over, such as `loading large: 12.3 s`.
    """

    def __init__(self, say: Say = say, terminal: bool | None = None) -> None:
        """`say` takes the lines; `terminal` is whether standard error is one, which is found out if left out."""
        self._say = say
        self._drawn = _bars() if (sys.stderr.isatty() if terminal is None else terminal) else None
        self._task: TaskID | None = None
        self._phase: str | None = None
        self._started = self._reminded = 0.0
        self._done, self._total, self._note = 0.0, 0.0, ""
        self._lock = threading.RLock()
        self._over = threading.Event()

    def begin(self, phase: str, total: float = 0) -> None:
        """End the phase before, and begin one of which `total` (of whatever unit; 0: not known) is to be done."""
        with self._lock:
            self.end()
            self._phase, self._done, self._total, self._note = phase, 0.0, total, ""
            self._started = self._reminded = time.monotonic()
            if self._drawn is not None:
                self._task = self._drawn.add_task(phase, total=total or None, note="")

    def update(self, done: float, note: str = "") -> None:
        """Say how much of the phase is done, with a note to show beside it."""
        with self._lock:
            self._done, self._note = done, note
            if self._drawn is not None and self._task is not None:
                self._drawn.update(self._task, completed=min(done, self._total or done), note=note)

    def end(self, note: str = "") -> None:
        """End the phase, if there is one."""
        with self._lock:
            if self._phase is None:
                return
            note = note or self._note
            if self._drawn is not None and self._task is not None:
                # A bar that is full stops its clock.
                self._drawn.update(self._task, total=self._total or 1, completed=self._total or 1, note=note)
                if len(self._drawn.tasks) > FINISHED_KEPT:
                    self._drawn.update(self._drawn.tasks[-FINISHED_KEPT - 1].id, visible=False)
            else:
                self._say(f"{self._phase}: {self._seconds:.1f} s{note and f', {note}'}")
            self._phase = self._task = None

    @property
    def current(self) -> str | None:
        """The phase that was begun last, unless it is over."""
        return self._phase

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _remind(self) -> None:
        while not self._over.wait(1.0):
            with self._lock:
                if self._phase is None or time.monotonic() - self._reminded < REMINDER_SECONDS:
                    continue
                self._reminded = time.monotonic()
                share = f"{self._done / self._total:.0%} " if self._total else "still at it "
                self._say(f"{self._phase}: {share}after {self._seconds:.0f} s{self._note and f', {self._note}'}")

    def __enter__(self) -> Self:
        if self._drawn is not None:
            self._drawn.start()
        else:
            threading.Thread(target=self._remind, name="phases", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if error is None:  # a fault has a line of its own
                self.end()
            self._phase = self._task = None
            self._over.set()
            if self._drawn is not None:
                self._drawn.stop()


def _bars() -> Progress:
    # Rich takes a moment to import, which a log does not need.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
    )
