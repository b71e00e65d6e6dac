"""Half an hour of mixed load on a server whose members draft: every answer the one without, and nothing left behind."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import AsyncOpenAI

from tests.e2e.test_speculation import fields
from tests.server_process import ServerProcess

MINUTES = 30
AT_ONCE = (1, 2, 6, 12, 40)
"""Clients, each number for a minute: so that the number of drafts goes up and down."""
KINDS = 70
DROPPED = 0.1


async def answer(client: AsyncOpenAI, number: int, **fusion: Any) -> list[Any]:
    completion = await client.chat.completions.create(**fields(number, **fusion))
    choices = sorted(completion.choices, key=lambda choice: choice.index)
    return [(choice.message.content, choice.finish_reason) for choice in choices]


async def streamed(client: AsyncOpenAI, number: int) -> list[Any]:
    texts: dict[int, str] = {}
    ends: dict[int, str | None] = {}
    async for chunk in await client.chat.completions.create(**fields(number), stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    return [(texts[index], ends[index]) for index in sorted(texts)]


def memory(server: ServerProcess) -> float:
    root = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in [root, *root.children(recursive=True)]) / 2**20


@pytest.mark.long
async def test_half_an_hour(tmp_path: Path) -> None:
    rng = random.Random(0)
    with ServerProcess(None, tmp_path / "log", "--set", "speculation.draft=auto") as server:
        async with AsyncOpenAI(base_url=server.url + "/v1", api_key="none", timeout=120, max_retries=0) as client:
            without = [await answer(client, number, speculate=False) for number in range(KINDS)]
            asked = dropped = 0
            wrong: list[tuple[int, list[Any]]] = []

            async def ask(until: float) -> None:
                nonlocal asked, dropped
                while time.monotonic() < until:
                    number, form = rng.randrange(KINDS), rng.choice([answer, streamed])
                    patience = rng.uniform(0.01, 0.3) if rng.random() < DROPPED else None
                    try:
                        async with asyncio.timeout(patience):
                            got = await form(client, number)
                    except TimeoutError:
                        dropped += 1
                        continue
                    asked += 1
                    if got != without[number]:
                        wrong.append((number, got))

            sizes = []
            for minute in range(MINUTES):
                until = time.monotonic() + 60
                await asyncio.gather(*(ask(until) for _ in range(AT_ONCE[minute % len(AT_ONCE)])))
                sizes.append(memory(server))
                print(f"{minute + 1} min: {asked} answers, {dropped} dropped, {sizes[-1]:.0f} MiB", flush=True)
        text = httpx.get(server.url + "/metrics").text
        steps = [line for line in text.splitlines() if line.startswith("fusion_speculation_steps_total{")]
        print(*steps, sep="\n")
        server.end()
    assert not wrong, wrong[:5]
    assert sum(not line.endswith(" 0.0") for line in steps) > 1, "their number follows the load"
    warm = sizes[len(AT_ONCE) - 1]  # all loads were there once
    assert sizes[-1] < 1.05 * warm, sizes
