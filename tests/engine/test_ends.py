"""Answers end at the end tokens of the experts that steer them, and nobody else's do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from shutil import copytree
from typing import Any

from vllm import RequestOutput, SamplingParams

from fusion_kernels import Weighting
from server.engine.client import FusionEngine
from server.engine.settings import FusionSettings
from tests.engine.engines import running
from tests.hf_loop import HFLoop, Settings

PROMPT = [1, 40, 50, 60]
RED, BLUE = ("red",), ("blue",)
CASES = {
    "red": Settings("static", RED, (1.0,)),
    "both": Settings("static", RED + BLUE, (1.0, 0.0)),
    "alone": Settings("alone", RED),
    "blue": Settings("static", BLUE, (1.0,)),
    "none": Settings("none"),
}


async def answer(engine: FusionEngine, settings: Settings, **fields: Any) -> RequestOutput:
    params = SamplingParams(**{"temperature": 0, "max_tokens": 12} | fields)
    experts = tuple(("red", "blue").index(name) for name in settings.experts)
    FusionSettings(Weighting.named(settings.weighting), experts, settings.alpha).attach(params)
    outputs = [
        output async for output in engine.generate({"prompt_token_ids": PROMPT}, params, repr((settings, fields)))
    ]
    return outputs[-1]


def tokens(output: RequestOutput) -> list[int]:
    return list(output.outputs[0].token_ids)


def test_ends_of_experts(family: Path, oracle: HFLoop, tmp_path: Path) -> None:
    whole = {name: oracle.greedy(PROMPT, case, 12)[0] for name, case in CASES.items()}
    end = whole["red"][4]
    assert end != whole["red"][0]
    copy = copytree(family.parent, tmp_path / "family") / family.name
    (copy.parent / "red" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, end]}))

    async def run() -> dict[str, RequestOutput]:
        async with running(copy) as engine:
            found = {name: await answer(engine, case) for name, case in CASES.items()}
            found["ignored"] = await answer(engine, CASES["red"], ignore_eos=True)
            found["own"] = await answer(engine, CASES["red"], stop_token_ids=whole["red"][:1])
            found["later"] = await answer(engine, CASES["red"], min_tokens=10)
            return found

    answers = asyncio.run(run())
    for name in ("red", "both", "alone"):
        stops = end in whole[name]
        assert tokens(answers[name]) == whole[name][: whole[name].index(end) + 1 if stops else None]
        assert answers[name].outputs[0].finish_reason == ("stop" if stops else "length")
    for name in ("blue", "none"):
        assert tokens(answers[name]) == whole[name], "another request's expert ended it"
    assert tokens(answers["ignored"]) == whole["red"]
    assert tokens(answers["own"]) == whole["red"][:1]
    assert end not in tokens(answers["later"])[:10]
