"""The server's process: start the engine, serve, and end cleanly on a signal or with a dead engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

import psutil
import uvicorn
from rich.console import Console

from server.config import Config
from server.engine.members import Members
from server.errors import ServerError
from server.logs import quiet_libraries

ENGINE_CHECK_SECONDS = 0.5
# vLLM's own default of 5 s kills an engine that is just tearing down its workers.
ENGINE_STOP_SECONDS = 20
# How long running requests may take after the first signal; the second one ends them at once.
GRACE_SECONDS = 30


def serve(config: Config, members: Members, sizes: dict[str, Any], host: str, port: int, log_level: str) -> int:
    """Serve until a signal; return the process' exit code: 0 after a clean end, 1 when the engine died.

    Leave the process with `leave`.

    Raises:
        ServerError: the address cannot be bound, or the engine does not start.
    """
    quiet_libraries(log_level)
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, _abandon)  # until the server is up and takes them itself
    with _bound(host, port) as sock:
        return asyncio.run(_serve(config, members, sizes, sock, host, log_level))


async def _serve(
    config: Config, members: Members, sizes: dict[str, Any], sock: socket.socket, host: str, log_level: str
) -> int:
    console = Console(stderr=True)
    started = time.monotonic()
    with console.status("Starting the engine ..."):
        # Importing vLLM alone takes seconds, so it waits for the status line.
        from server.app import build_app
        from server.engine.launch import start_engine

        try:
            engine = start_engine(config, members)
        except Exception as error:
            raise ServerError(f"the engine did not start: {_last_line(error)}") from error
    try:
        app = build_app(engine, config, sizes)
        server = _Server(uvicorn.Config(app, log_level=log_level, timeout_graceful_shutdown=GRACE_SECONDS))
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sig, server.handle_exit, sig, None)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        console.print(f"Ready after {time.monotonic() - started:.0f} s.\n")
        console.print(_greeting(config, _url(host, sock)), markup=False, highlight=False, soft_wrap=True)
        while not serving.done():
            await asyncio.wait([serving], timeout=ENGINE_CHECK_SECONDS)
            if engine.errored and not server.should_exit:
                console.print("error: the engine died; stopping", style="red")
                server.should_exit = True
        await serving
        return 1 if engine.errored else 0
    finally:
        engine.shutdown(timeout=ENGINE_STOP_SECONDS)


def leave(code: int) -> NoReturn:
    """End the process at once, when all is shut down.

    An ordinary exit lets Triton 3.9's bindings print hundreds of lines on the objects that they leaked.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handling, which would end the process before the engine's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets running requests end; the second does not wait for them."""
        self.force_exit = self.should_exit
        self.should_exit = True


def _abandon(sig: int, frame: FrameType | None) -> NoReturn:
    """End a start-up at once, with all that it started.

    There is nothing to save yet, and an exception raised in the middle of vLLM's start-up does not always get out.
    """
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    leave(128 + sig)


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """Bind before the engine loads: a taken port should not cost minutes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            raise ServerError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
        yield sock


def _url(host: str, sock: socket.socket) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{sock.getsockname()[1]}"


def _greeting(config: Config, url: str) -> str:
    names = list(config.presets)
    model = next((name for name, preset in config.presets.items() if preset.experts), names[0])
    return f"""\
logit-fusion serves {", ".join(names)} at {url}

Try it:
  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d \\
    '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

From Python (pip install openai):
  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  answer = client.chat.completions.create(
      model="{model}", messages=[{{"role": "user", "content": "Hello!"}}],
      extra_body={{"fusion": {{"trace": True}}}})
  print(answer.choices[0].message.content)

Documentation of the API: {url}/docs    Stop: Ctrl-C"""


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
