"""Whether the large model alone, in an engine with experts loaded, says what plain vLLM says.

    python -m bench.gpu.engine [--sizes 1 2 3 8 33]

The demo family, greedy, in float32, at sizes of batches for which vLLM has captured a CUDA graph and at others.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

import torch

from server.config import load_config

NEW_TOKENS = 24
# The demo family runs eagerly as it is configured; on a card the captured graphs are in question.
OVERRIDES = ["engine.dtype=float32", "engine.max_num_seqs=64", "engine.max_model_len=512"] + (
    ["engine.enforce_eager=false"] if torch.cuda.is_available() else []
)


async def answers(engine: Any, settings: Any, size: int) -> list[list[int]]:
    """The tokens of `size` requests at once."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def answer(number: int) -> list[int]:
        params = SamplingParams(
            temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
        )
        if settings is not None:
            settings.attach(params)
        prompt = {"prompt_token_ids": [10 + (number * 31 + i * 7) % 1900 for i in range(8 + number)]}
        async for output in engine.generate(prompt, params, f"{size}-{number}"):
            tokens = list(output.outputs[0].token_ids)
        return tokens

    return list(await asyncio.gather(*(answer(number) for number in range(size))))


async def compare(sizes: list[int]) -> list[str]:
    """What differs, one line a size."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from server.engine.launch import start_engine
    from server.engine.members import resolve_members
    from server.engine.settings import FusionSettings

    config = load_config(None, OVERRIDES)
    fused = start_engine(config, resolve_members(config))
    ours = [await answers(fused, FusionSettings(), size) for size in sizes]
    fused.shutdown(timeout=20)
    plain = AsyncLLM.from_engine_args(AsyncEngineArgs(model=config.large.model, **config.engine))
    theirs = [await answers(plain, None, size) for size in sizes]
    plain.shutdown(timeout=20)
    differing = [
        sum(one != other for one, other in zip(mine, yours, strict=True))
        for mine, yours in zip(ours, theirs, strict=True)
    ]
    return [f"{size} at once: {wrong} differ" for size, wrong in zip(sizes, differing, strict=True) if wrong]


def main() -> int:
    """Compare, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 3, 8, 33])
    options = parser.parse_args()
    found = asyncio.run(compare(options.sizes))
    print("\n".join(found) or f"equal token for token at {options.sizes} requests")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
