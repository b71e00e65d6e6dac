"""Serves families one after another and judges their answers: what works, what is refused and why.

    python -m tests.families.try_family FOLDER KIND ...

prints one JSON object a line, `Outcome`. A process of its own, because an engine that fails may leave something behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from server.errors import ConfigError
from tests.families.build import ADAPTED, make_family_of
from tests.families.kinds import SETTINGS


@dataclass(frozen=True)
class Outcome:
    """How one family fared."""

    kind: str
    models: str
    """Large, base and expert: `works`, or why not."""
    adapter: str
    tokens: int
    """How many were compared with Transformers'."""
    ties: int


def main() -> None:
    """Try the families."""
    folder, *kinds = sys.argv[1:]
    for kind in kinds:
        print(json.dumps(asdict(try_family(kind, Path(folder) / kind))), flush=True)
    os._exit(0)  # vLLM's threads of engines that did not start keep the process


def try_family(kind: str, folder: Path) -> Outcome:
    """Make a family, serve it, and judge the answers to random requests."""
    try:
        config, experts = make_family_of(folder, kind)
    except Exception as error:
        return Outcome(kind, f"not made: {_line(error)}", "-", 0, 0)
    return asyncio.run(_serve(kind, config, experts))


async def _serve(kind: str, config: Path, experts: list[str]) -> Outcome:
    from server.config import load_config
    from server.engine.checks import check_members
    from server.engine.launch import start_engine
    from server.engine.phases import FAILED, listening
    from tests.engine.driver import draw_cases, send_all
    from tests.engine.judge import Verdict, judge
    from tests.hf_loop import HFLoop

    adapter = "works" if "adapted" in experts else "-"
    try:
        report = check_members(load_config(config))
    except ConfigError as error:
        reason = _line(error)
        if not reason.startswith("experts.adapted"):
            return Outcome(kind, f"refused: {reason}", "-", 0, 0)
        adapter, experts = f"refused: {reason}", ["tuned"]
        config.write_text(config.read_text().replace(ADAPTED, ""))
        report = check_members(load_config(config))
    failures: list[str] = []
    try:
        with listening(lambda told: failures.append(told["reason"]) if told["phase"] == FAILED else None):
            engine = start_engine(report.config, report.members)
    except Exception as error:
        return Outcome(kind, f"does not start: {[*failures, _line(error)][0]}", "-", 0, 0)
    try:
        cases = draw_cases(16, 7, experts, longest_prompt=80, longest_answer=12)
        answers: list[Any] = await send_all(engine, cases, experts)
    except Exception as error:
        return Outcome(kind, f"fails: {_line(error)}", "-", 0, 0)
    finally:
        engine.shutdown()
    window = {"sliding_window": SETTINGS[kind]["sliding_window"] + 1} if kind.startswith("cohere2") else {}
    oracle, verdict = HFLoop(config.parent, experts, **window), Verdict()
    for module in oracle.modules():
        if kind == "bloom" and hasattr(module, "gelu_impl"):
            module.gelu_impl = nn.GELU()
    try:
        for case, answer in zip(cases, answers, strict=True):
            if answer is not None:
                verdict += judge(oracle, case, answer)
    except AssertionError as error:
        return Outcome(kind, f"differs: {_line(error)}", "-", verdict.tokens, verdict.ties)
    return Outcome(kind, "works", adapter, verdict.tokens, verdict.ties)


def _line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]


if __name__ == "__main__":
    main()
