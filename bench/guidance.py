"""What a prompt of its own costs: guidance and context-aware decoding of a real model by itself, SmolLM2-135M-Instruct.

    python -m bench.guidance [--rounds 5] [--dtype bfloat16]

One engine with the model, and the same weights once more under another prompt. In turn, 1, 4 and 16 requests at once:
plain ones, twice as many plain ones, guided ones (the model once more without the system message), and ones whose other
prompt is the request's own, which must cost what plain ones do; then questions with a document, plain, and by
context-aware decoding (the model once more without the document). Each is two passes, so half of the plain requests'
tokens per second is what can be had where a pass' time is the weights' reading; two requests of a batch share it, which
two passes of one model do not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from typing import Any

from bench.beliefs import beliefs
from bench.members_in_use import QUIET_SECONDS
from bench.results_file import store
from bench.steering import CONFIG, SYSTEMS, with_model

NEW_TOKENS = 48
AT_ONCE = (1, 4, 16)
# What a case's tokens per second are a ratio of.
PLAIN, WITH_DOCUMENT = "plain", "plain, with a document"


async def measure(rounds: int, dtype: str) -> list[dict[str, Any]]:
    """The rows of the table."""
    from fusion_kernels import Weighting
    from server.config import load_config
    from server.engine.checks import check_members
    from server.engine.launch import start_engine
    from server.engine.pairs import Pairs
    from server.engine.settings import FusionSettings

    os.environ |= with_model()
    config = load_config(CONFIG, [f"engine.dtype={dtype}", "engine.enable_prefix_caching=false"])
    report = check_members(config)
    engine = start_engine(report.config, report.members)
    pairs = [Pairs(config).own(expert) for expert in range(2)]
    tokenizer: Any = engine.get_tokenizer()

    def ids(*contents: tuple[str, str]) -> list[int]:
        messages = [{"role": role, "content": content} for role, content in contents]
        found: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return found

    facts = beliefs()[::8]
    alone = [ids(("user", fact.question)) for fact in facts]
    told = [ids(("system", SYSTEMS[-1].text), ("user", fact.question)) for fact in facts]
    read = [ids(("user", fact.contradicting), ("user", fact.question)) for fact in facts]

    def steered(expert: int, other: list[int]) -> FusionSettings:
        pair = pairs[expert]
        return FusionSettings(Weighting.STATIC, (expert,), (1.0,), pairs=(pair,), prompts={pair.against: other})

    found: dict[tuple[int, str], list[float]] = {}
    for round_number in range(rounds + 1):
        for number in AT_ONCE:
            places = [place % len(facts) for place in range(2 * number)]
            once, plain = places[:number], FusionSettings()
            runs = {
                PLAIN: [(told[place], plain) for place in once],
                "two plain": [(told[place], plain) for place in places],
                "guided": [(told[place], steered(0, alone[place])) for place in once],
                "the same prompt": [(told[place], steered(0, told[place])) for place in once],
                WITH_DOCUMENT: [(read[place], plain) for place in once],
                "context-aware": [(read[place], steered(1, alone[place])) for place in once],
            }
            for name, requests in runs.items():
                await asyncio.sleep(QUIET_SECONDS)
                rate = await _rate(engine, requests)
                if round_number:  # the first warms everything up
                    found.setdefault((number, name), []).append(rate)
    engine.shutdown(timeout=20)
    return [_row(number, name, found, dtype) for number, name in found if name not in (PLAIN, WITH_DOCUMENT)]


async def _rate(engine: Any, requests: list[tuple[list[int], Any]]) -> float:
    """Tokens per second of requests that come at once."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def one(place: int, prompt: list[int], settings: Any) -> int:
        params = SamplingParams(
            temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
        )
        settings.attach(params)
        number = 0
        async for output in engine.generate({"prompt_token_ids": prompt}, params, f"{time.monotonic()}-{place}"):
            number += len(output.outputs[0].token_ids)
        return number

    began = time.perf_counter()
    tokens = sum(await asyncio.gather(*(one(place, *request) for place, request in enumerate(requests))))
    return tokens / (time.perf_counter() - began)


def _row(number: int, name: str, found: dict[tuple[int, str], list[float]], dtype: str) -> dict[str, Any]:
    """`ratio` is to plain requests with the same prompts; of two plain ones each is half of what they give together."""
    share, plain = 0.5 if name == "two plain" else 1.0, WITH_DOCUMENT if name == "context-aware" else PLAIN
    rates = [rate * share for rate in found[number, name]]
    ratios = sorted(a / b for a, b in zip(rates, found[number, plain], strict=True))
    return {
        "case": name,
        "requests": number,
        "tokens_per_s": round(statistics.median(rates), 1),
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(ratios[0], 3),
        "highest": round(ratios[-1], 3),
        "dtype": dtype,
    }


def main() -> None:
    """Measure, print the table, store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    rows = asyncio.run(measure(args.rounds, args.dtype))
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"stored in {store('guidance', rows)}")


if __name__ == "__main__":
    main()
