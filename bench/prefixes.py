"""How much of a shared system prompt comes out of the prefix cache, by which members the requests run.

    python -m bench.prefixes [--requests 32]

One engine over the embedded models. In each case every request sends the same system prompt, new to the cache, and a
question of its own, one after another. Prints and stores the share of all prompt tokens that were read from the cache,
and as a ratio of what an engine would have found there whose requests all share: everything but the first request's
prompt and the part of a block that is left over.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from typing import Any

from bench.results_file import store
from server.config import load_config

SYSTEM_TOKENS = 160
QUESTION_TOKENS = 24


async def measure(requests: int) -> list[dict[str, Any]]:
    """The hit rates by case, as rows of the table."""
    from fusion_kernels import Weighting
    from server.engine.launch import start_engine
    from server.engine.members import resolve_members
    from server.engine.settings import FusionSettings

    config = load_config(None)
    engine = start_engine(config, resolve_members(config))
    block = engine.vllm_config.cache_config.block_size
    none, all_at_once = FusionSettings(), FusionSettings(Weighting.KL_SAFE, (0, 1, 2))
    kl, static = FusionSettings(Weighting.KL, (0,)), FusionSettings(Weighting.STATIC, (0,), (1.0,))
    others = [FusionSettings(Weighting.KL, (expert,)) for expert in (1, 2)]
    cases = {
        "large alone": [none],
        "one preset": [kl],
        "one expert, two weightings": [kl, static],
        "all experts at once": [all_at_once],
        "three presets of one expert each": [kl, *others],
        "five presets, one without experts": [none, kl, *others, all_at_once],
    }
    rows = []
    for number, (name, settings) in enumerate(cases.items()):
        found = await hits(engine, settings, requests, first=40 + number)
        prompts = requests * (SYSTEM_TOKENS + QUESTION_TOKENS)
        possible = (requests - 1) * (SYSTEM_TOKENS // block * block)
        rows.append(
            {
                "case": name,
                "member_sets": len({setting.members_used for setting in settings}),
                "requests": requests,
                "hit_rate": round(found / prompts, 3),
                "of_possible": round(found / possible, 3),
            }
        )
    engine.shutdown(timeout=20)
    return rows


async def hits(engine: Any, settings: Sequence[Any], requests: int, first: int) -> int:
    """Prompt tokens that came out of the cache: requests with each of the `settings` in turn, one system prompt."""
    from vllm import SamplingParams

    total = 0
    system = [first + token % 3 for token in range(SYSTEM_TOKENS)]
    for number in range(requests):
        question = [100 + (number * 7 + token) % 150 for token in range(QUESTION_TOKENS)]
        params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
        settings[number % len(settings)].attach(params)
        async for output in engine.generate({"prompt_token_ids": system + question}, params, f"{first}-{number}"):
            cached = output.num_cached_tokens
        total += cached or 0
    return total


def main() -> None:
    """Measure, print the table, store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32)
    rows = asyncio.run(measure(parser.parse_args().requests))
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"stored in {store('prefixes', rows)}")


if __name__ == "__main__":
    main()
