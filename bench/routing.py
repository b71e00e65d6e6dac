"""What it costs to let the prompt choose the expert.

    python -m bench.routing [--folder DIR] [--rounds 5] [--dtype bfloat16]

One engine with four experts is asked in turn by requests that name one expert, and by requests for which a router
chooses that one. Each request has a prompt of 64 tokens and an answer of 48. Every figure is a ratio within one round:
tokens per second of all, and the time until one request's first token.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.members import SMALL, make_members
from bench.results_file import store
from server.config import load_config

EXPERTS = 4
CHOSEN = 1
REQUESTS = (1, 4, 16)
PROMPT_TOKENS, NEW_TOKENS = 64, 48
QUIET_SECONDS = 1.2


def make_router(folder: Path) -> Path:
    """A router for the base in `folder` that always chooses one of the experts."""
    import torch

    from server.engine.routing.router import Router, fingerprint

    bias = torch.zeros(EXPERTS)
    bias[CHOSEN] = 20.0
    names = tuple(f"expert{number}" for number in range(EXPERTS))
    file = folder / "router.safetensors"
    Router(torch.zeros(EXPERTS, SMALL["hidden_size"]), bias, names, 0.5, fingerprint(folder / "base")).save(file)
    return file


async def measure(folder: Path, rounds: int, dtype: str) -> list[dict[str, Any]]:
    """The ratios by number of requests, as rows of the table."""
    from fusion_kernels import Weighting
    from server.engine.launch import start_engine
    from server.engine.members import resolve_members
    from server.engine.settings import FusionSettings, Route

    file = make_members(folder, EXPERTS)
    experts = list(range(EXPERTS))
    auto = f"presets.auto={{experts: [{', '.join(f'expert{n}' for n in experts)}], route: {make_router(folder)}}}"
    config = load_config(file, [f"engine.dtype={dtype}", auto])
    engine = start_engine(config, resolve_members(config))
    named = FusionSettings(Weighting.KL, (CHOSEN,))
    routed = FusionSettings(Weighting.KL, tuple(experts), route=Route(0, 1, ""))
    rates: dict[tuple[str, int], list[float]] = {}
    firsts: dict[str, list[float]] = {"named": [], "routed": []}
    for round_number in range(rounds + 1):
        for requests in REQUESTS:
            for name, settings in (("named", named), ("routed", routed)):
                await asyncio.sleep(QUIET_SECONDS)
                rate = await _generate(engine, [settings] * requests, NEW_TOKENS)
                if round_number:  # the first one warms everything up
                    rates.setdefault((name, requests), []).append(rate)
        for name, settings in (("named", named), ("routed", routed)) * 3:
            await asyncio.sleep(QUIET_SECONDS)
            seconds = 1 / await _generate(engine, [settings], 1)
            if round_number:
                firsts[name].append(1000 * seconds)
    engine.shutdown(timeout=20)
    rows = []
    for requests in REQUESTS:
        pairs = zip(rates["routed", requests], rates["named", requests], strict=True)
        rows.append(_row(f"{requests} requests, tokens per second", rates["routed", requests], pairs))
    rows.append(_row("first token, ms", firsts["routed"], zip(firsts["routed"], firsts["named"], strict=True)))
    return [row | {"dtype": dtype} for row in rows]


def _row(case: str, values: list[float], pairs: Any) -> dict[str, Any]:
    ratios = [routed / named for routed, named in pairs]
    return {
        "case": case,
        "routed": round(statistics.median(values), 1),
        "ratio_to_named": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
    }


async def _generate(engine: Any, settings: list[Any], new_tokens: int) -> float:
    """Tokens per second of greedy requests sent at once, each told what was chosen for it."""
    from vllm import SamplingParams

    async def run(number: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        asked = settings[number]
        routed = None
        if asked.route is not None:
            routed = engine.open_route(asked.route.router, lambda _: None)
            asked = replace(asked, route=asked.route._replace(name=f"{routed.key}/0"))
        asked.attach(params)
        # Prompts differ from run to run, or the prefix cache would answer for the prefill.
        first = time.perf_counter_ns() % 1500
        prompt = {"prompt_token_ids": [300 + (first + number * 7 + i) % 1500 for i in range(PROMPT_TOKENS)]}
        async for _ in engine.generate(prompt, params, f"{time.perf_counter_ns()}-{number}"):
            pass
        assert routed is None or [choice.experts for choice in routed.chosen.values()] == [[CHOSEN]]

    started = time.perf_counter()
    await asyncio.gather(*(run(number) for number in range(len(settings))))
    return len(settings) * new_tokens / (time.perf_counter() - started)


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
    print(f"stored in {store('routing', rows)}")


if __name__ == "__main__":
    main()
