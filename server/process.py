"""The server's process: start the engine, serve, and end cleanly on a signal or with a dead engine."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import psutil
import uvicorn
import uvloop
from pydantic import ValidationError
from rich.console import Console

from server.auth import Keys
from server.config import Config
from server.errors import ConfigError, ServerError
from server.logs import notice
from server.progress import Phases

if TYPE_CHECKING:
    from server.admission import Gate
    from server.engine.checks import Report
    from server.engine.client import FusionEngine
    from server.engine.processes import EngineProcesses

CHECK_SECONDS = 0.25
# vLLM's own default of 5 s kills an engine that is just tearing down its workers.
ENGINE_STOP_SECONDS = 20
# With a dead engine the server answers a little longer, so that streams end with a word and probes turn red.
DEAD_SECONDS = 5
# What the greeting asks: short, and right or wrong at a glance.
QUESTION = "What is the two-letter code of Norway?"
# How long responses that are complete may take to be sent when all else is over.
FLUSH_SECONDS = 5


@dataclass(frozen=True)
class Listen:
    """Where and how the server listens."""

    host: str
    port: int
    drain_timeout_s: float


def serve(report: Report, listen: Listen, remarks: Sequence[str]) -> int:
    """Serve until a signal; return the process' exit code: 0 after a clean end, 1 when the engine died.

    `remarks` are logged once the address is bound.

    Leave the process with `leave`.

    Raises:
        ConfigError: the keys cannot be read.
        ServerError: the address cannot be bound, or the engine does not start.
    """
    config = report.config
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, _abandon)  # until the server is up and takes them itself
    keys = Keys(Path(config.auth.keys_file) if config.auth.keys_file else None)
    if config.adapters is not None and config.adapters.admin == "key" and config.auth.keys_file is None:
        raise ConfigError(
            "adapters.admin: 'key' needs auth.keys_file, with a key that says `admin: true`; where nobody else reaches "
            "the server, say 'anyone'"
        )
    with _bound(listen.host, listen.port, "--port") as sock, _metrics_bound(config, listen) as metrics_sock:
        for remark in remarks:
            notice(remark)
        if not keys.required and not _is_loopback(sock):
            message = f"warning: no API keys are configured (auth.keys_file): whoever reaches {listen.host} may use it"
            Console(stderr=True).print(message, style="yellow", markup=False, highlight=False)
        return uvloop.run(_serve(report, keys, sock, metrics_sock, listen))


async def _serve(
    report: Report, keys: Keys, sock: socket.socket, metrics_sock: socket.socket | None, listen: Listen
) -> int:
    config = report.config
    console = Console(stderr=True)
    started = time.monotonic()
    with Phases(notice) as phases:
        phases.begin("starting the engine")
        # Importing vLLM alone takes seconds, so it waits for the phase that shows it.
        from server.app import build_app, build_metrics_app
        from server.connection import uvicorn_config
        from server.engine.launch import start_engine
        from server.engine.pairs import Pairs
        from server.engine.phases import listening
        from server.engine.processes import EngineProcesses
        from server.engine.self_check import check_fusion

        failures: list[str] = []
        engine: FusionEngine | None = None
        try:
            with listening(partial(_hear, phases, report, failures)):
                engine = start_engine(config, report.members)
            phases.end(f"KV cache of {engine.vllm_config.cache_config.kv_cache_size_tokens or 0:,} tokens")
            phases.begin("checking that it fuses")
            await engine.learn_room()
            await check_fusion(engine, [Pairs(config).own(expert) for expert in range(len(config.experts))])
        except Exception as error:
            if engine is not None:
                engine.shutdown(timeout=ENGINE_STOP_SECONDS)
            reason = [*failures, _last_line(error)][0]
            raise ServerError(f"the engine did not start ({phases.current}): {reason}") from error
    try:
        app = build_app(engine, report, keys)
        await app.state.adapters.begin()
        if metrics_sock is not None:
            metrics_app = build_metrics_app(app, config, keys)
            metrics_server = _Server(uvicorn_config(metrics_app, config.limits, lifespan="off"))
            # It answers to the very end; the app holds its task, which would otherwise be collected as garbage.
            app.state.metrics_server = asyncio.create_task(metrics_server.serve(sockets=[metrics_sock]))
        server = _Server(uvicorn_config(app, config.limits, timeout_graceful_shutdown=FLUSH_SECONDS))
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        stopping = _signals_stop()
        processes = EngineProcesses()
        console.print(f"Ready after {time.monotonic() - started:.0f} s.\n")
        console.print(_greeting(config, _url(listen.host, sock)), markup=False, highlight=False, soft_wrap=True)
        while not (serving.done() or stopping.is_set() or engine.errored):
            await asyncio.wait([serving], timeout=CHECK_SECONDS)
            processes.end_together()
        if stopping.is_set():
            await _drain(app.state.admission.gate, engine, processes, listen.drain_timeout_s, console)
        if engine.errored:
            console.print("error: the engine died; stopping", style="red")
            await asyncio.wait([serving], timeout=DEAD_SECONDS)
        server.should_exit = True
        await serving
        return 1 if engine.errored else 0
    finally:
        engine.shutdown(timeout=ENGINE_STOP_SECONDS)


def _hear(phases: Phases, report: Report, failures: list[str], told: dict[str, Any]) -> None:
    """Show what the engine's processes announce (`server.engine.phases`), and keep what ends them."""
    if told["phase"] == "failed":
        failures.append(told["reason"])
        return
    member, phase = told["member"], str(told["phase"])
    if member:
        phase, parameters = f"loading {member}", told["parameters"]
        if phases.current != phase:
            total = next((each.parameters for each in report.reports if each.member.name == member), 0)
            phases.begin(phase, total)
        phases.update(parameters)
    else:
        words = {"building": "building the members", "warming": "warming up"}
        eager = report.config.engine.get("enforce_eager")
        words["first pass"] = "measuring memory" if eager else "compiling, measuring memory"
        phases.begin(words[phase])


def _signals_stop() -> asyncio.Event:
    """From now on the first signal sets the event that is returned; the second one ends the process at once."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def take(sig: int) -> None:
        if stopping.is_set():
            _abandon(sig, None)
        stopping.set()

    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, take, sig)
    return stopping


async def _drain(
    gate: Gate, engine: FusionEngine, processes: EngineProcesses, timeout_s: float, console: Console
) -> None:
    """Let nobody in any more, and wait for what runs."""
    gate.drain()
    deadline = time.monotonic() + timeout_s
    running = sum(not ticket.extra for ticket in gate.policy.running)
    if running:
        console.print(f"Waiting up to {timeout_s:g} s for {running} requests to end; a second signal stops at once.")
    while not (gate.idle or engine.errored) and time.monotonic() < deadline:
        await asyncio.sleep(CHECK_SECONDS)
        processes.end_together()


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


def _abandon(sig: int, frame: FrameType | None) -> NoReturn:
    """End at once, with all that was started.

    During start-up there is nothing to save, and an exception raised in the middle of vLLM's does not always get out.
    """
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    leave(128 + sig)


@contextlib.contextmanager
def _metrics_bound(config: Config, listen: Listen) -> Iterator[socket.socket | None]:
    port = config.http.metrics_port
    if port is None:
        yield None
        return
    if port == listen.port:
        raise ServerError(f"http.metrics_port: {port} is the API's own port; choose another, or leave it out")
    with _bound(config.http.metrics_host or listen.host, port, "http.metrics_port") as sock:
        yield sock


@contextlib.contextmanager
def _bound(host: str, port: int, setting: str) -> Iterator[socket.socket]:
    """Bind before the engine loads: a taken port should not cost minutes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            raise ServerError(f"cannot listen on {host}:{port}: {error.strerror}; choose another {setting}") from None
        yield sock


def _is_loopback(sock: socket.socket) -> bool:
    return ipaddress.ip_address(sock.getsockname()[0]).is_loopback


def _url(host: str, sock: socket.socket) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{sock.getsockname()[1]}"


def _greeting(config: Config, url: str) -> str:
    names = config.named_presets
    model = max(names, key=lambda name: len(config.presets[name].experts))  # of the largest, the first
    return f"""\
logit-fusion serves {", ".join(names)} at {url}

Try it:
  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d \\
    '{{"model": "{model}", "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}'

From Python (pip install openai):
  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  answer = client.chat.completions.create(
      model="{model}", messages=[{{"role": "user", "content": "{QUESTION}"}}],
      extra_body={{"fusion": {{"trace": True}}}})
  print(answer.choices[0].message.content)

See which expert moves which token: {url}/    The API: {url}/docs    Stop: Ctrl-C"""


def _last_line(error: BaseException) -> str:
    if isinstance(error, ValidationError):  # vLLM's configuration; the last line would be a link
        return "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors(include_url=False))
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
