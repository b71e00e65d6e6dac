"""The engine's processes, watched: when one dies, all do."""

from __future__ import annotations

import contextlib

import psutil

# vLLM names its processes so.
_TITLE = "VLLM::"


class EngineProcesses:
    """The engine core and its workers under this process, as of now.

    vLLM 0.32 sees at once that its engine core died, but takes up to ten seconds over a worker of it.
    """

    def __init__(self) -> None:
        self._processes = [
            process
            for process in psutil.Process().children(recursive=True)
            if " ".join(process.cmdline()).startswith(_TITLE)
        ]

    def end_together(self) -> None:
        """Kill what is left of the engine if any of its processes has died."""
        if all(_lives(process) for process in self._processes):
            return
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
