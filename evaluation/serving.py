"""Where the answers come from: a server that runs already, or one that is started here and ends with the run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from evaluation.client import Client
from server.config import Config, load_config
from server.launcher import ServerProcess
from server.options import KEY_VARIABLE


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
    routed: list[str]
    """Those of the presets whose router chooses experts."""
    fingerprint: str


async def look_up(source: Source) -> Known:
    """Return what can be asked, without starting anything.

    Raises:
        ConfigError: the configuration is wrong.
        ServerError: the running server does not answer.
    """
    if source.url is None:
        config = load_config(source.config)
        routed = [name for name, preset in config.presets.items() if preset.route is not None]
        return Known(list(config.experts), list(config.presets), routed, _digest(config.model_dump(), _files(config)))
    async with Client(source.url, source.key) as client:
        members, presets = await client.members(), await client.presets()
    routed = [name for name, preset in members["presets"].items() if preset.get("routed") and "split" not in preset]
    experts = [member["name"] for member in members["members"] if member["role"] == "expert"]
    return Known(experts, presets, routed, _digest(members, presets))


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
    # Keys of the environment are for servers that others can reach; this one is ours alone.
    environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    server = ServerProcess(source.config, log, environment=environment)
    try:
        await asyncio.to_thread(server.wait_until_healthy)
        async with Client(server.url, source.key) as client:
            yield client
    finally:
        server.__exit__(None, None, None)


def _files(config: Config) -> list[list[object]]:
    """Name, size and time of every file of the local members: other weights under the same name are other models."""
    members = (config.large, *filter(None, [config.base]), *config.experts.values())
    sources = [getattr(member, kind, None) for member in members for kind in ("model", "adapter")]
    sources += [part for expert in config.experts.values() for part in expert.parts.values()]
    folders = [Path(source) for source in sources if source is not None and source.startswith("/")]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    files += [Path(router) for router in config.routers]
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _digest(*parts: object) -> str:
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
