"""Many requests, a fifth of them dropped half way: does anything of a request stay behind?

    python -m bench.soak [requests]

Prints, after each tenth, the memory of the server's process and of its engine's, its asyncio tasks, and what is kept
for requests; writes them to `bench/results/soak.csv`. The first tenth warms caches up and is no part of the ratio.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
from contextlib import aclosing
from dataclasses import asdict, dataclass

import psutil
from vllm import SamplingParams
from vllm.inputs import TokensPrompt

from bench.results_file import store
from fusion_kernels import Weighting
from server.config import load_config
from server.engine.client import FusionEngine
from server.engine.launch import start_engine
from server.engine.members import resolve_members
from server.engine.settings import FusionSettings

TOGETHER = 16
DROPPED, TRACED = 0.2, 0.2
KINDS = [Weighting.NONE, Weighting.STATIC, Weighting.KL, Weighting.KL_GRID, Weighting.ALONE]


@dataclass(frozen=True)
class Sample:
    """One look at the server after `requests` requests."""

    requests: int
    seconds: float
    api_mib: float
    engine_mib: float
    tasks: int
    requests_kept: int
    traces_open: int
    traces_kept: int
    steps_kept: int


async def send(engine: FusionEngine, number: int, rng: random.Random) -> None:
    kind = rng.choice(KINDS)
    experts = () if kind == Weighting.NONE else (0,) if kind == Weighting.ALONE else (0, 1)
    trace = engine.open_trace() if rng.random() < TRACED else None
    temperature, max_tokens = rng.choice([0.0, 1.0]), rng.randint(1, 16)
    choices = rng.choice([1, 1, 1, 2]) if temperature else 1
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, n=choices, ignore_eos=True)
    FusionSettings(kind, experts, (0.5,) * len(experts), trace=None if trace is None else trace.prompt_key(0)).attach(
        params
    )
    prompt = TokensPrompt(prompt_token_ids=[rng.randint(3, 511) for _ in range(rng.randint(1, 64))])
    patience = rng.uniform(0, 0.3) if rng.random() < DROPPED else None
    try:
        async with asyncio.timeout(patience):
            async with aclosing(engine.generate(prompt, params, f"soak-{number}")) as outputs:
                async for _ in outputs:
                    pass
    except TimeoutError:
        pass


async def look(engine: FusionEngine, requests: int, started: float) -> Sample:
    """Wait until nothing runs, then count."""
    await asyncio.sleep(0.5)
    gc.collect()
    process = psutil.Process()
    kept = [sum(counts) for counts in zip(*await engine.collective_rpc("count_fusion_traces"), strict=True)]
    return Sample(
        requests=requests,
        seconds=round(time.monotonic() - started, 1),
        api_mib=round(process.memory_info().rss / 2**20, 1),
        engine_mib=round(sum(child.memory_info().rss for child in process.children(recursive=True)) / 2**20, 1),
        tasks=len(asyncio.all_tasks()),
        requests_kept=len(engine.output_processor.request_states),
        traces_open=len(engine._traces),
        traces_kept=kept[0],
        steps_kept=kept[1],
    )


async def soak(number: int) -> list[Sample]:
    """Send `number` requests, `TOGETHER` at a time, and look ten times."""
    rng = random.Random(0)
    samples: list[Sample] = []
    config = load_config(None, [f"engine.max_num_seqs={TOGETHER}"])
    engine = start_engine(config, resolve_members(config))
    try:
        started, gate = time.monotonic(), asyncio.Semaphore(2 * TOGETHER)

        async def one(request: int) -> None:
            async with gate:
                await send(engine, request, rng)

        for tenth in range(10):
            first = number * tenth // 10
            await asyncio.gather(*(one(request) for request in range(first, number * (tenth + 1) // 10)))
            samples.append(await look(engine, number * (tenth + 1) // 10, started))
            print(samples[-1], flush=True)
    finally:
        engine.shutdown()
    return samples


def main() -> None:
    """Soak, print the growth after the first tenth, and store the samples."""
    samples = asyncio.run(soak(int(sys.argv[1]) if len(sys.argv) > 1 else 5000))
    first, last = samples[0], samples[-1]
    print(f"memory, last over first tenth: API process {last.api_mib / first.api_mib:.3f}, ", end="")
    print(f"engine {last.engine_mib / first.engine_mib:.3f}")
    store("soak", [asdict(sample) for sample in samples])


if __name__ == "__main__":
    main()
