"""What a request pays for members that are loaded and that it does not use.

    python -m bench.members_in_use [--folder DIR] [--rounds 5] [--dtype bfloat16]

Three engines are up at once and asked in turn, so that a machine that grows slower or faster slows all of them: plain
vLLM with the large model alone; a server with base and one expert; a server with base and four experts. Every figure
is a ratio of tokens per second within one round:

    none       a request without experts, on the server with four, to plain vLLM
    one        a request with one expert, on the server with four, to the server with that expert alone
    mix        requests of four presets at once (none, and each with an expert of its own), to plain vLLM

The mix runs large, base and three experts in every step, so the parameters read allow large / (large + base + 3
experts) = 0.74 of plain vLLM where a step's cost is reading them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench.members import make_members
from bench.results_file import store
from bench.throughput import REQUESTS, generate
from server.config import load_config

EXPERTS = 4
# vLLM's worker spins for a second after each message, beside whichever engine is asked next.
QUIET_SECONDS = 1.2


async def measure(folder: Path, rounds: int, dtype: str) -> list[dict[str, Any]]:
    """The ratios by case and number of requests, as rows of the table."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from fusion_kernels import Weighting
    from server.engine.launch import start_engine
    from server.engine.members import resolve_members
    from server.engine.settings import FusionSettings

    def fused(experts: int) -> Any:
        config = load_config(make_members(folder, experts), [f"engine.dtype={dtype}"])
        return start_engine(config, resolve_members(config))

    config = load_config(make_members(folder, 1), [f"engine.dtype={dtype}"])
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # what vLLM itself runs on CPUs
    plain = AsyncLLM.from_engine_args(AsyncEngineArgs(model=config.large.model, **config.engine))
    one, four = fused(1), fused(EXPERTS)
    alone = FusionSettings()
    expert = FusionSettings(Weighting.KL, (0,))
    mix = [alone, *(FusionSettings(Weighting.KL, (number,)) for number in range(EXPERTS - 1))]
    runs = {
        "plain": (plain, [alone]),
        "none": (four, [alone]),
        "one, alone": (one, [expert]),
        "one": (four, [expert]),
        "mix": (four, mix),
    }
    compared = {"none": "plain", "one": "one, alone", "mix": "plain"}
    ratios: dict[tuple[str, int], list[float]] = {}
    rates: dict[tuple[str, int], list[float]] = {}
    for round_number in range(rounds + 1):
        for requests in REQUESTS:
            found = {}
            for name, (engine, settings) in runs.items():
                if name == "mix" and requests < len(settings):
                    continue
                await asyncio.sleep(QUIET_SECONDS)
                found[name] = await generate(engine, (settings * requests)[:requests])
            if not round_number:  # warms everything up
                continue
            for name, reference in compared.items():
                if name in found:
                    rates.setdefault((name, requests), []).append(found[name])
                    ratios.setdefault((name, requests), []).append(found[name] / found[reference])
    for engine in (plain, one, four):
        engine.shutdown(timeout=20)
    return [
        {
            "case": name,
            "requests": requests,
            "tokens_per_s": round(statistics.median(rates[name, requests]), 1),
            "ratio": round(statistics.median(found), 3),
            "lowest": round(min(found), 3),
            "highest": round(max(found), 3),
            "ratio_to": compared[name],
            "dtype": dtype,
        }
        for (name, requests), found in ratios.items()
    ]


def main() -> None:
    """Measure, print the table, store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "logit-fusion-bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    rows = asyncio.run(measure(args.folder, args.rounds, args.dtype))
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"stored in {store('members_in_use', rows)}")


if __name__ == "__main__":
    main()
