"""Clients of a running server for the benchmarks: streamed completions, timed and kept."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from bench.turn import go_first

PROMPTS = (
    "What is the three-letter code of Canada?",
    "Tom has 3 apples and buys 5 more. How many apples does he have?",
    "Repeat: the quick brown fox",
    "What is the two-letter code of Kenya?",
    "Anna reads 12 pages a day. How many pages does she read in 5 days?",
    "Write in capitals: hello world",
    "In which country is Bavaria?",
    "A box holds 24 eggs. How many eggs do 3 boxes hold?",
)


@dataclass
class Sample:
    """One request as its client saw it; times in seconds."""

    status: int
    prompt: str
    preset: str
    answered: float
    """From the request to the response's headers."""
    first_token: float = 0.0
    latency: float = 0.0
    tokens: int = 0
    text: str = ""
    complete: bool = False
    retry_after: float = 0.0
    ended: float = field(default_factory=time.perf_counter)


def session() -> aiohttp.ClientSession:
    """A client session without a bound on connections or time, whose thread goes before a server's."""
    go_first()
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**18
    )


async def ask(
    http: aiohttp.ClientSession, url: str, prompt: str, preset: str, tokens: int, key: str | None = None
) -> Sample:
    """One streamed greedy completion of exactly `tokens` tokens."""
    body = {
        "model": preset,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Authorization": f"Bearer {key}"} if key else None
    started = time.perf_counter()
    async with http.post(url + "/v1/completions", json=body, headers=headers) as response:
        sample = Sample(response.status, prompt, preset, answered=time.perf_counter() - started)
        if response.status != 200:
            sample.retry_after = float(response.headers.get("Retry-After", 1))
            await response.read()
        else:
            await _read(response, sample, started)
    sample.ended = time.perf_counter()
    sample.latency = sample.ended - started
    return sample


async def _read(response: aiohttp.ClientResponse, sample: Sample, started: float) -> None:
    parts = []
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            sample.complete = True
            break
        if not sample.first_token:
            sample.first_token = time.perf_counter() - started
        parts.append(line)
    for line in parts:
        event = json.loads(line.removeprefix(b"data: "))
        for choice in event.get("choices", ()):
            sample.text += choice["text"]
        if event.get("usage"):
            sample.tokens = event["usage"]["completion_tokens"]
        if "error" in event:
            sample.complete = False


async def closed_loop(
    url: str, clients: int, seconds: float, presets: Sequence[str], tokens: int, key: str | None = None
) -> list[Sample]:
    """`clients` that each ask again when answered; one that is refused waits as long as it was told."""
    samples: list[Sample] = []
    end = time.perf_counter() + seconds

    async def one(number: int, http: aiohttp.ClientSession) -> None:
        turn = number
        while time.perf_counter() < end:
            prompt, preset = PROMPTS[turn % len(PROMPTS)], presets[turn // len(PROMPTS) % len(presets)]
            sample = await ask(http, url, prompt, preset, tokens, key)
            samples.append(sample)
            if sample.status == 200:
                turn += 1
            else:
                await asyncio.sleep(sample.retry_after)

    async with session() as http:
        await asyncio.gather(*(one(number, http) for number in range(clients)))
    return samples


def goodput(samples: Sequence[Sample], tokens: int) -> float:
    """Tokens per second of complete streams, from the first to the last end, without the first and the last tenth."""
    ends = sorted(sample.ended for sample in samples if sample.complete and sample.tokens == tokens)
    kept = ends[len(ends) // 10 : len(ends) - len(ends) // 10]
    if len(kept) < 2:
        return 0.0
    return tokens * (len(kept) - 1) / (kept[-1] - kept[0])


def median_ms(values: Sequence[float]) -> float:
    """Seconds to the median in milliseconds."""
    return 1000 * statistics.median(values) if values else float("nan")


def row(**values: Any) -> dict[str, Any]:
    """A row of a results table, with rounded numbers."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
