"""Members' greedy answers in bfloat16, by the engine in each role, and by plain vLLM, which serves one model alone."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

from vllm import AsyncEngineArgs, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from fusion_kernels import Weighting
from server.engine.settings import FusionSettings
from tests.engine.engines import running
from tests.engine.families import write_config

PROMPTS = [[1, *range(40, 40 + 7 * n)] for n in range(1, 5)]
ROLES = ("large", "base", "red")


async def by_role(folder: Path) -> dict[str, list[list[int]]]:
    """The answers of `large`, `base` and the expert `red` in a folder, and `steered`: the large one's plus base - base.

    Raises:
        ConfigError: they do not go together.
    """
    copytree(folder / "base", folder / "twin")
    config = write_config(folder, {"red": "{model: ./red}", "twin": "{model: ./twin}"})
    # The base answers as the expert does that has the same files.
    asked = {
        "large": FusionSettings(),
        "base": FusionSettings(Weighting.ALONE, (1,)),
        "red": FusionSettings(Weighting.ALONE, (0,)),
        "steered": FusionSettings(Weighting.STATIC, (1,), (1.0,)),
    }
    async with running(config, "engine.dtype=bfloat16") as engine:
        return {name: await _greedy(engine, settings, name) for name, settings in asked.items()}


async def alone(model: Path) -> list[list[int]]:
    """Plain vLLM's answers."""
    args = AsyncEngineArgs(
        model=str(model),
        dtype="bfloat16",
        max_model_len=160,
        max_num_seqs=4,
        enforce_eager=True,
        kv_cache_memory_bytes=33554432,
    )
    engine = AsyncLLM.from_engine_args(args)
    try:
        return await _greedy(engine, None, model.name)
    finally:
        engine.shutdown()


async def _greedy(engine: Any, settings: FusionSettings | None, name: str) -> list[list[int]]:
    found = []
    for number, prompt in enumerate(PROMPTS):
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        if settings is not None:
            settings.attach(params)
        async for output in engine.generate({"prompt_token_ids": prompt}, params, f"{name}-{number}"):
            last = output
        found.append(list(last.outputs[0].token_ids))
    return found
