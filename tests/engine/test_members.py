"""Members of every kind, mixed: architectures, attention windows, padded vocabularies, adapters, merges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.engine.driver import draw_cases, send_all
from tests.engine.engines import running
from tests.engine.families import (
    FAMILIES,
    make,
    make_derived,
    qwen3_over_qwen2,
)
from tests.engine.judge import Verdict, judge
from tests.hf_loop import HFLoop

# An engine takes its time to start: of each kind one a day.
DAILY = {"multimodal_gemma3"}


async def check(config: Path, experts: Sequence[str], number: int, *options: str) -> None:
    """Send random requests at once and judge them all."""
    cases = draw_cases(number, 7, experts, longest_prompt=80, longest_answer=12)
    async with running(config, *options) as engine:
        answers = await send_all(engine, cases, experts)
    oracle, verdict = HFLoop(config.parent, experts), Verdict()
    for case, answer in zip(cases, answers, strict=True):
        if answer is not None:
            verdict += judge(oracle, case, answer)
    print(verdict)
    assert verdict.tokens
    assert verdict.ties <= verdict.tokens // 200


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, id=f.__name__, marks=() if f.__name__ in DAILY else pytest.mark.long) for f in FAMILIES],
)
async def test_mixed_members(family: Callable[[Path], None], tmp_path: Path) -> None:
    await check(make(family, tmp_path), ["red", "blue"], 16)


@pytest.mark.long
async def test_adapters_and_merges_are_what_peft_and_torch_make_of_them(tmp_path: Path) -> None:
    await check(make_derived(tmp_path), ["red", "adapted", "blend"], 16)


@pytest.mark.long
async def test_compiled(tmp_path: Path) -> None:
    await check(make(qwen3_over_qwen2, tmp_path), ["red", "blue"], 24, "engine.enforce_eager=false")
