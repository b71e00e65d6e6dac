"""The real server, through its command line, and what tests look at beside its answers."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from server import launcher


class ServerProcess(launcher.ServerProcess):
    """`environment` is added to this process's."""

    def __init__(
        self, config: Path | None, log: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(config, log, *arguments, environment=os.environ | (environment or {}))

    def end(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """End it as a user or an orchestrator does, and check that it ends as it should: with 0, leaving no process."""
        assert len(self.processes()) > 1, "the engine runs in processes of its own"
        assert self.stop(sig) == 0
        assert self.wait_until_gone() == []

    def processes(self) -> list[str]:
        """Command lines of what still runs in the server's session: the engine's processes too, ended ones not."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
        return found

    def wait_until_gone(self, seconds: float = 30) -> list[str]:
        """Give the last processes time to end after the main one, and return those that did not."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


@functools.cache
def demo_server() -> ServerProcess:
    """The demo models, served as by `logit-fusion serve` without a configuration: one server for all tests, which
    leave it as it is. It ends with them.
    """
    server = ServerProcess(None, Path(tempfile.mkdtemp(prefix="demo-")) / "server.log")
    atexit.register(server.__exit__, None, None, None)
    return server.__enter__()
