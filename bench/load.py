"""Four times more clients than the server takes: does anybody suffer but those that are sent away?

    python -m bench.load [--seconds 180] [--clients 256] [--running 64]

First as many clients as may run at once, then four times as many, on one server over the embedded models. Prints and
stores goodput (tokens per second of complete streams) with and without overload and their ratio, what the refused
clients waited for their 429, and whether every accepted stream was complete and had the text of a quiet server.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from bench.clients import PROMPTS, Sample, ask, closed_loop, goodput, median_ms, row, session
from bench.results_file import store
from server.launcher import ServerProcess

PRESETS = ("giant", "giant-math", "giant-facts", "giant-all")
TOKENS = 64


async def reference(url: str) -> dict[tuple[str, str], str]:
    """The text of every prompt and preset, asked for one at a time."""
    async with session() as http:
        answers = [await ask(http, url, prompt, preset, TOKENS) for prompt in PROMPTS for preset in PRESETS]
    return {(answer.prompt, answer.preset): answer.text for answer in answers}


def summary(name: str, clients: int, samples: list[Sample], texts: dict[tuple[str, str], str]) -> dict[str, Any]:
    accepted = [sample for sample in samples if sample.status == 200]
    refused = [sample for sample in samples if sample.status == 429]
    wrong = sum(sample.text != texts[sample.prompt, sample.preset] for sample in accepted)
    return row(
        phase=name,
        clients=clients,
        accepted=len(accepted),
        refused=len(refused),
        other_statuses=sum(
            count for status, count in Counter(s.status for s in samples).items() if status not in (200, 429)
        ),
        incomplete=sum(not sample.complete or sample.tokens != TOKENS for sample in accepted),
        wrong_text=wrong,
        goodput_tokens_s=goodput(samples, TOKENS),
        refused_in_ms_median=median_ms([sample.answered for sample in refused]),
        first_token_ms_median=median_ms([sample.first_token for sample in accepted]),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--running", type=int, default=64)
    options = parser.parse_args()
    settings = {"admission.max_running": options.running, "admission.max_queued": options.running}
    arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(None, Path(folder) / "log", *arguments) as server,
    ):
        texts = asyncio.run(reference(server.url))
        rows = []
        for name, clients, seconds in (
            ("warm-up", options.running, 10.0),
            ("at capacity", options.running, options.seconds / 3),
            ("overload", options.clients, options.seconds),
            ("at capacity again", options.running, options.seconds / 3),
        ):
            samples = asyncio.run(closed_loop(server.url, clients, seconds, PRESETS, TOKENS))
            rows.append(summary(name, clients, samples, texts))
            print(rows[-1], flush=True)
    rows = rows[1:]
    quiet = max(rows[0]["goodput_tokens_s"], rows[2]["goodput_tokens_s"])
    for entry in rows:
        entry["of_capacity"] = round(entry["goodput_tokens_s"] / quiet, 3)
    print(f"goodput under overload: {rows[1]['of_capacity']:.1%} of the better run at capacity")
    store("load", rows)
    failed = any(entry["other_statuses"] or entry["incomplete"] or entry["wrong_text"] for entry in rows)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
