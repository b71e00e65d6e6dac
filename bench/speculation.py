"""What speculation earns: tokens per second of fusion with and without it, against plain vLLM with the large model.

    python -m bench.speculation [--folder DIR] [--rounds 3] [--requests 1,4,16] [--tokens 3] [--dtype bfloat16]
                                [--plain-draft]
    python -m bench.speculation --acceptance

The members are the demo family at the cost of 665M and 58M parameters (`bench.widened`): their agreement is the
family's own. Two engines are up and asked in turn, so that a machine that grows slower or faster slows both: plain vLLM
with the large model, and the fused one, whose requests speculate or do not. Every prompt is a held-out question of the
task, every answer 48 tokens long; how many are the same with and without is counted. With `--acceptance`: how many
drafts are accepted, by task, by who drafts and by how far ahead, in answers that end where they end, all of `--tokens`
being drafted in each step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.members_in_use import QUIET_SECONDS
from bench.results_file import store
from bench.widened import NAMES, make_widened
from server.config import load_config
from zoo import FAMILY

if TYPE_CHECKING:
    from server.engine.aggregates import Counts

TASKS = NAMES[2:]
NEW_TOKENS = 48
QUESTIONS = 24
"""Of each task, to see what is accepted."""


class Questions:
    """Held-out questions of each task as prompts, each asked once."""

    def __init__(self, tokenizer: Any) -> None:
        self._prompts = {task: list(_prompts(tokenizer, task)) for task in TASKS}
        self._next = dict.fromkeys(TASKS, 0)

    def take(self, task: str, number: int) -> list[list[int]]:
        """The next `number` prompts of a task, from the first again when all were asked."""
        prompts, start = self._prompts[task], self._next[task]
        self._next[task] += number
        return [prompts[(start + i) % len(prompts)] for i in range(number)]


def _prompts(tokenizer: Any, task: str) -> Any:
    for line in (FAMILY / "evaluation" / f"{task}.jsonl").read_text().splitlines():
        messages = [{"role": "user", "content": json.loads(line)["question"]}]
        yield tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


async def generate(
    engine: Any, prompts: Sequence[list[int]], settings: Any, tokens: int, *, to_the_end: bool = False
) -> tuple[float, list[list[int]]]:
    """Tokens per second of greedy requests sent at once, and their tokens."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def run(number: int, prompt: list[int]) -> list[int]:
        params = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=not to_the_end, output_kind=RequestOutputKind.FINAL_ONLY
        )
        settings.attach(params)
        # A salt of its own: the prefix cache must not answer for the prompt.
        name = f"{time.perf_counter_ns()}-{number}"
        found: list[int] = []
        async for output in engine.generate({"prompt_token_ids": prompt, "cache_salt": name}, params, name):
            found = list(output.outputs[0].token_ids)
        return found

    started = time.perf_counter()
    answers = await asyncio.gather(*(run(number, prompt) for number, prompt in enumerate(prompts)))
    return sum(map(len, answers)) / (time.perf_counter() - started), answers


async def measure(args: argparse.Namespace) -> None:
    """Measure, print and store both tables."""
    from transformers import AutoTokenizer
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from server.engine.launch import start_engine
    from server.engine.members import resolve_members

    speculation = [f"speculation.tokens={args.tokens}", f"speculation.adapt={'false' if args.acceptance else 'true'}"]
    config = load_config(make_widened(args.folder, args.dtype), speculation)
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # what vLLM itself runs on CPUs
    plain = {"plain": AsyncLLM.from_engine_args(AsyncEngineArgs(model=config.large.model, **config.engine))}
    if args.plain_draft:
        assert config.base is not None
        draft = {"method": "draft_model", "model": config.base.model, "num_speculative_tokens": args.tokens}
        drafting = AsyncEngineArgs(model=config.large.model, speculative_config=draft, **config.engine)
        plain["plain_drafted"] = AsyncLLM.from_engine_args(drafting)
    fused = start_engine(config, resolve_members(config))
    questions = Questions(AutoTokenizer.from_pretrained(config.large.model))
    try:
        if args.acceptance:
            rows = await _accepted(fused, questions, args.dtype)
        else:
            rows = await _speeds(plain, fused, questions, args)
        for row in rows:
            print("  ".join(f"{key} {value}" for key, value in row.items()))
        print(f"stored in {store('acceptance' if args.acceptance else args.name, rows)}")
    finally:
        for engine in (*plain.values(), fused):
            engine.shutdown(timeout=20)


def _settings(number: int, draft: str | None) -> Any:
    """Of a task's own expert, drafted for by a member or not."""
    from fusion_kernels import Weighting
    from server.engine.settings import FusionSettings
    from server.engine.speculation.drafter import with_drafter

    settings = FusionSettings(Weighting.KL, (number,), preset=1 + number)
    return settings if draft is None else with_drafter(settings, draft, TASKS, has_base=True)


async def _speeds(
    plain: dict[str, Any], fused: Any, questions: Questions, args: argparse.Namespace
) -> list[dict[str, Any]]:
    from server.engine.settings import FusionSettings

    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    same = total = 0
    for round_number in range(args.rounds + 1):
        for number in map(int, args.requests.split(",")):
            for place, task in enumerate(TASKS):
                prompts = questions.take(task, number)
                cases = {
                    **{name: (engine, FusionSettings()) for name, engine in plain.items()},
                    "fused": (fused, _settings(place, None)),
                    "speculated": (fused, _settings(place, "auto")),
                }
                answers = {}
                for name, (engine, settings) in cases.items():
                    await asyncio.sleep(QUIET_SECONDS)
                    rate, answers[name] = await generate(engine, prompts, settings, NEW_TOKENS)
                    print(f"round {round_number}, {number} at once, {task}, {name}: {rate:.1f} tokens/s", flush=True)
                    if round_number:  # the first warms everything up
                        found.setdefault((task, number), {}).setdefault(name, []).append(rate)
                same += sum(a == b for a, b in zip(answers["fused"], answers["speculated"], strict=True))
                total += number
    steps = (await _counts(fused))["ahead"]
    print(f"{same} of {total} answers are the same with and without speculation; steps by number of drafts: {steps}")
    return [_row(task, number, rates, args.dtype) for (task, number), rates in found.items()]


async def _accepted(fused: Any, questions: Questions, dtype: str) -> list[dict[str, Any]]:
    accepted = []
    for draft in ("auto", "base", "math"):
        before = (await _counts(fused))["drafts"]
        for place, task in enumerate(TASKS):
            await generate(fused, questions.take(task, QUESTIONS), _settings(place, draft), 64, to_the_end=True)
        # A second, so that the counters hold the last steps.
        await asyncio.sleep(1)
        after = (await _counts(fused))["drafts"]
        for number, task in enumerate(TASKS, start=1):
            for place, (new, old) in enumerate(zip(after[number], before[number], strict=True), start=1):
                proposed, taken = (a - b for a, b in zip(new, old, strict=True))
                row = {"task": task, "draft": draft, "position": place, "drafted": proposed, "accepted": taken}
                accepted.append(row | {"share": round(taken / max(1, proposed), 3), "dtype": dtype})
    return accepted


async def _counts(engine: Any) -> Counts:
    (counts, *_), *_ = await engine.on_workers("read_fusion_counts")
    return counts  # type: ignore[no-any-return]


def _row(task: str, number: int, found: dict[str, list[float]], dtype: str) -> dict[str, Any]:
    def ratio(name: str, to: str) -> list[float]:
        return sorted(a / b for a, b in zip(found[name], found[to], strict=True))

    row: dict[str, Any] = {"task": task, "requests": number}
    row |= {f"{name}_tokens_per_s": round(statistics.median(rates), 1) for name, rates in found.items()}
    pairs = [("fused", "plain"), ("speculated", "plain"), ("speculated", "fused")]
    if "plain_drafted" in found:
        pairs += [("plain_drafted", "plain"), ("speculated", "plain_drafted")]
    for name, to in pairs:
        ratios = ratio(name, to)
        row[f"{name}_to_{to}"] = round(statistics.median(ratios), 3)
        row[f"{name}_to_{to}_lowest"], row[f"{name}_to_{to}_highest"] = round(ratios[0], 3), round(ratios[-1], 3)
    return row | {"dtype": dtype}


def main() -> None:
    """Measure, print the tables, store them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "logit-fusion-widened")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", default="1,4,16")
    parser.add_argument("--name", default="speculation", help="of the file of speeds")
    parser.add_argument("--tokens", type=int, default=3)
    parser.add_argument("--acceptance", action="store_true", help="measure what is accepted, not the speed")
    parser.add_argument("--plain-draft", action="store_true", help="also plain vLLM with the base as its draft model")
    parser.add_argument("--dtype", default="bfloat16")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
