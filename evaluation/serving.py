"""Where the answers come from: a server that runs already, or one that is started here and ends with the run."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import httpx

from evaluation.client import Client
from server.config import Config, load_config
from server.errors import ServerError

STOP_SECONDS = 30
# Loaded here: between fork and exec, a lock that another thread held would never be free again.
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Source:
    """A running server's address, or the configuration to serve (None: the embedded one); and who serves it."""

    url: str | None
    config: Path | None
    key: str | None


@dataclass(frozen=True)
class Known:
    """What can be asked of a source, and a digest that changes when its models do."""

    experts: list[str]
    presets: list[str]
    fingerprint: str


async def look_up(source: Source) -> Known:
    """Return what can be asked, without starting anything.

    Raises:
        ConfigError: the configuration is wrong.
        ServerError: the running server does not answer.
    """
    if source.url is None:
        config = load_config(source.config)
        return Known(list(config.experts), list(config.presets), _digest(config.model_dump(), _files(config)))
    async with Client(source.url, source.key) as client:
        members, presets = await client.members(), await client.presets()
    experts = [member["name"] for member in members["members"] if member["role"] == "expert"]
    return Known(experts, presets, _digest(members, presets))


@contextlib.asynccontextmanager
async def connected(source: Source, log: Path) -> AsyncIterator[Client]:
    """Start the server if it does not run yet, and give a client of it; what it says goes to `log`.

    Raises:
        ServerError: it ended before it could answer.
    """
    if source.url is not None:
        async with Client(source.url, source.key) as client:
            yield client
        return
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, "-m", "server", "serve", "--port", str(port)]
    if source.config is not None:
        command += ["--config", str(source.config)]
    # Keys of the environment are for servers that others can reach; this one is ours alone.
    environment = {name: value for name, value in os.environ.items() if name != "LOGIT_FUSION_API_KEY"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
            preexec_fn=_end_with_parent,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        await _until_ready(url, process, log)
        async with Client(url, source.key) as client:
            yield client
    finally:
        _stop(process)


def _end_with_parent() -> None:
    """Have Linux send SIGTERM to this process when its parent dies, however that happens."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


async def _until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    async with httpx.AsyncClient() as http:
        while process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if (await http.get(url + "/health")).status_code == 200:
                    return
            await asyncio.sleep(0.2)
    lines = log.read_text(errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("error: ") if lines else "it said nothing"
    raise ServerError(f"the server ended with {process.returncode} before it could answer: {last} (all of it: {log})")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _files(config: Config) -> list[list[object]]:
    """Name, size and time of every file of the local members: other weights under the same name are other models."""
    members = (config.large, *filter(None, [config.base]), *config.experts.values())
    sources = [getattr(member, kind, None) for member in members for kind in ("model", "adapter")]
    folders = [Path(source) for source in sources if source is not None and source.startswith("/")]
    return [
        [str(path), path.stat().st_size, path.stat().st_mtime_ns]
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _digest(*parts: object) -> str:
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
