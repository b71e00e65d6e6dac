"""Tokens per second of fusion as a ratio of the plain large model, in the same run on the same machine.

    python -m bench.throughput [--folder DIR] [--rounds 3]

One engine runs at a time, because an idle one would not be idle: plain, fused, then plain again, so that a machine
that grows slower or faster shows. The ratio to reach is that of the parameters read for each token,
large / (large + base + experts): 0.85 with one expert of these sizes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.members import make_members
from bench.results_file import store
from server.config import load_config

REQUESTS = (1, 4, 16)
PROMPT_TOKENS = 32
NEW_TOKENS = 32


async def measure(
    folder: Path, num_experts: int, rounds: int, weightings: Sequence[str], graphs: str | None = None
) -> list[dict[str, Any]]:
    """Rates of the plain engine and of every weighting by number of requests, as rows of the table."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from server.engine.launch import start_engine
    from server.engine.members import resolve_members

    overrides = []
    if graphs is not None:
        overrides = ["engine.enforce_eager=false", f"engine.compilation_config={{cudagraph_mode: {graphs}}}"]
    config = load_config(make_members(folder, num_experts), overrides)

    def plain() -> Any:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # what vLLM itself runs on CPUs
        return AsyncLLM.from_engine_args(AsyncEngineArgs(model=config.large.model, **config.engine))

    def fused() -> Any:
        return start_engine(config, resolve_members(config))

    rates: dict[tuple[str, int], list[float]] = {}
    starts: dict[str, float] = {}
    for name, start, kinds in (("plain", plain, ["plain"]), ("fused", fused, weightings), ("plain", plain, ["plain"])):
        started = time.perf_counter()
        engine = start()
        starts[name] = time.perf_counter() - started
        print(f"{name}: started in {starts[name]:.1f} s", flush=True)
        for round_number in range(rounds + 1):
            for requests in REQUESTS:
                for kind in kinds:
                    rate = await _rate(engine, kind, requests, num_experts)
                    if round_number:  # the first round warms everything up
                        rates.setdefault((kind, requests), []).append(rate)
        engine.shutdown(timeout=20)
    rows = []
    for (kind, requests), found in rates.items():
        reference = statistics.median(rates["plain", requests])
        rows.append(
            {
                "weighting": kind,
                "requests": requests,
                "tokens_per_s": round(statistics.median(found), 1),
                "ratio_to_plain": round(statistics.median(found) / reference, 3),
                "lowest": round(min(found) / reference, 3),
                "highest": round(max(found) / reference, 3),
                "start_s": round(starts["plain" if kind == "plain" else "fused"], 1),
            }
        )
    return rows


async def _rate(engine: Any, weighting: str, requests: int, num_experts: int) -> float:
    from fusion_kernels import Weighting
    from server.engine.settings import FusionSettings

    settings = FusionSettings()
    if weighting not in ("plain", "none"):
        alpha = (1.0,) * num_experts if weighting == "static" else ()
        settings = FusionSettings(Weighting.named(weighting), tuple(range(num_experts)), alpha)
    return await generate(engine, [settings] * requests)


async def generate(engine: Any, settings: Sequence[Any]) -> float:
    """Tokens per second of greedy requests sent at once, one for each of the fusion `settings`."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def run(number: int) -> None:
        params = SamplingParams(
            temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
        )
        settings[number].attach(params)
        # Prompts differ from run to run, or the prefix cache would answer for the prefill.
        first = time.perf_counter_ns() % 1500
        prompt = {"prompt_token_ids": [300 + (first + number * 7 + i) % 1500 for i in range(PROMPT_TOKENS)]}
        async for _ in engine.generate(prompt, params, f"{time.perf_counter_ns()}-{number}"):
            pass

    started = time.perf_counter()
    await asyncio.gather(*(run(number) for number in range(len(settings))))
    return len(settings) * NEW_TOKENS / (time.perf_counter() - started)


def main() -> None:
    """Measure, print the table, store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "logit-fusion-bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--experts", type=int, default=1)
    parser.add_argument("--weightings", nargs="+", default=["static", "kl-grid", "kl"])
    parser.add_argument("--graphs", choices=["PIECEWISE", "FULL_AND_PIECEWISE"], help="compiled, with CUDA graphs")
    args = parser.parse_args()
    rows = asyncio.run(measure(args.folder, args.experts, args.rounds, args.weightings, args.graphs))
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    name = "throughput" if args.graphs is None else f"throughput-{args.graphs.lower()}"
    print(f"stored in {store(f'gpu/{name}' if torch.cuda.is_available() else name, rows)}")


if __name__ == "__main__":
    main()
