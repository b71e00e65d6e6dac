"""Sixteen ordinary streams beside a neighbour that asks for the worst that is allowed: they hardly notice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.e2e.hostile import CASES, CONNECTION_CASES
from tests.server_process import ServerProcess

STREAMS = 16
ROUNDS = 8
"""Requests of each stream, one after another."""
SLOWDOWN = 2.0
# Below this, what the machine does besides is more than what a neighbour does.
FLOOR_SECONDS = 0.25

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("hostile") / "server.log"
    with ServerProcess(None, log, "--set", "limits.read_timeout_s=5") as process:
        yield process
        process.end()


async def first_tokens(url: str) -> list[float]:
    """Seconds to the first token of every request of the ordinary streams, all of which end well."""

    async def one(client: httpx.AsyncClient, number: int) -> list[float]:
        seconds = []
        for turn in range(ROUNDS):
            body = {
                "model": "giant-math",
                "messages": [{"role": "user", "content": f"What is {number} + {turn}?"}],
                "max_tokens": 32,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            started, first, last = time.monotonic(), 0.0, ""
            async with client.stream("POST", url + "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200, await response.aread()
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        first = first or time.monotonic() - started
                        last = line
            assert '"completion_tokens":32' in last, last
            seconds.append(first)
        return seconds

    async with httpx.AsyncClient(timeout=60.0) as client:
        found = await asyncio.gather(*(one(client, number) for number in range(STREAMS)))
    return [second for stream in found for second in stream]


def p95(seconds: list[float]) -> float:
    return float(np.percentile(seconds, 95))


@contextmanager
def hostile(url: str, case: str, log: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.e2e.hostile", url, case]
    with log.open("w") as file, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n", log.read_text()
            time.sleep(1)
            assert process.poll() is None
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("case", [*CASES, *CONNECTION_CASES])
async def test_ordinary_streams_hardly_notice(server: ServerProcess, case: str, tmp_path: Path) -> None:
    await first_tokens(server.url)
    quiet = p95(await first_tokens(server.url))
    with hostile(server.url, case, tmp_path / "hostile.log"):
        beside = p95(await first_tokens(server.url))
    sizes = (tmp_path / "hostile.log").read_text().strip()
    print(f"{case}: first token p95 {quiet:.3f} s quiet, {beside:.3f} s beside ({sizes})")
    assert beside <= max(SLOWDOWN * quiet, FLOOR_SECONDS), f"quiet {quiet:.3f} s, beside {beside:.3f} s"
    deadline = time.monotonic() + 60
    while (chat := await _answers(server.url)) != 200 and time.monotonic() < deadline:
        await asyncio.sleep(1)
    assert chat == 200, "the neighbour has gone, and what it left behind with it"


async def _answers(url: str) -> int:
    body = {"model": "giant", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2}
    async with httpx.AsyncClient(timeout=30.0) as client:
        return (await client.post(url + "/v1/chat/completions", json=body)).status_code
