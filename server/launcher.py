"""A server in a process of its own, for whoever asks one: the evaluation, benchmarks, tests."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from server.errors import ServerError

START_SECONDS = 400.0
STOP_SECONDS = 60.0
# Loaded here: between fork and exec, a lock that another thread held would never be free again.
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """A port that nobody listens on, as of now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


class Launched:
    """A command that serves HTTP, on a free port that it is given as `--port`; what it says goes to `log`.

    A context manager that waits until `/health` answers, and ends the command with what it started.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        """Start it; `environment` is all that it gets, by default this process's."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*command, "--port", str(port)],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
                preexec_fn=_end_with_parent,
            )

    def wait_until_healthy(self) -> None:
        """Return when `/health` answers.

        Raises:
            ServerError: it ended first, or took longer than `START_SECONDS`.
        """
        deadline = time.monotonic() + START_SECONDS
        # One client: making one reads all certificates, which takes the processor from the server that starts.
        with httpx.Client() as client:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    raise ServerError(
                        f"the server ended with {self.process.returncode} before it could answer: {self._last_line()} "
                        f"(all of it: {self.log})"
                    )
                with contextlib.suppress(httpx.TransportError):
                    if client.get(self.url + "/health").status_code == 200:
                        return
                time.sleep(0.05)
        raise ServerError(f"the server did not answer within {START_SECONDS:g} s (what it said: {self.log})")

    def stop(self, sig: signal.Signals = signal.SIGTERM, seconds: float = STOP_SECONDS) -> int:
        """Send a signal and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended after so many seconds.
        """
        self.process.send_signal(sig)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """End it and all that it started there and then."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else "it said nothing"

    def __enter__(self) -> Self:
        try:
            self.wait_until_healthy()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()


class ServerProcess(Launched):
    """This server with a configuration (None: the embedded one), `arguments` as `serve` has them."""

    def __init__(
        self, config: Path | None, log: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        command = [sys.executable, "-m", "server", "serve", *arguments]
        if config is not None:
            command += ["--config", str(config)]
        super().__init__(command, log, environment)


def _end_with_parent() -> None:
    """Have Linux send SIGTERM to this process when its parent dies, however that happens."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
