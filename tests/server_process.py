"""Starts the real server, through its command line, as a process of its own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

START_SECONDS = 400


def free_port() -> int:
    """A port that nobody listens on, as of now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


class ServerProcess:
    """`logit-fusion serve` on a free port; a context manager that waits until it is healthy."""

    def __init__(
        self, config: Path | None, log: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        command = [sys.executable, "-m", "server", "serve", "--port", str(port), *arguments]
        if config is not None:
            command += ["--config", str(config)]
        variables = os.environ | (environment or {})
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=variables
            )

    def wait_until_healthy(self) -> None:
        """Return when `/health` answers.

        Raises:
            RuntimeError: the process ended first, or took too long.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log.read_text()}")
            try:
                if httpx.get(self.url + "/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise RuntimeError(f"the server was not healthy after {START_SECONDS} s:\n{self.log.read_text()}")

    def stop(self, sig: signal.Signals = signal.SIGTERM, seconds: float = 60) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(sig)
        return self.process.wait(seconds)

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

    def __enter__(self) -> Self:
        try:
            self.wait_until_healthy()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@functools.cache
def demo_server() -> ServerProcess:
    """The demo models, served as by `logit-fusion serve` without a configuration: one server for all tests, which
    leave it as it is. It ends with them.
    """
    server = ServerProcess(None, Path(tempfile.mkdtemp(prefix="demo-")) / "server.log")
    atexit.register(server.__exit__, None, None, None)
    return server.__enter__()
