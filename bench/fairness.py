"""One key floods, another asks once a second: how much longer does the second wait for its first token?

    python -m bench.fairness [--seconds 60] [--flood 64] [--running 8]

The quiet key alone, then beside the flood, then alone again, on one server over the embedded models. Prints and stores
the median time to the first token of the quiet key and its ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import yaml

from bench.clients import PROMPTS, Sample, ask, closed_loop, goodput, median_ms, row, session
from bench.results_file import store
from server.launcher import ServerProcess

TOKENS = 64
PRESET = "giant-all"


async def once_a_second(url: str, seconds: int) -> list[Sample]:
    async with session() as http:
        asking = []
        for second in range(seconds):
            prompt = PROMPTS[second % len(PROMPTS)]
            asking.append(asyncio.create_task(ask(http, url, prompt, PRESET, TOKENS, "quiet")))
            await asyncio.sleep(1)
        return await asyncio.gather(*asking)


async def phase(name: str, url: str, seconds: int, flood: int) -> dict[str, Any]:
    flooding = asyncio.create_task(closed_loop(url, flood, seconds, [PRESET], TOKENS, "flood"))
    quiet = await once_a_second(url, seconds)
    flooded = await flooding
    return row(
        phase=name,
        flooding_clients=flood,
        quiet_accepted=sum(sample.status == 200 for sample in quiet),
        quiet_refused=sum(sample.status != 200 for sample in quiet),
        quiet_first_token_ms_median=median_ms([sample.first_token for sample in quiet]),
        quiet_latency_ms_median=median_ms([sample.latency for sample in quiet]),
        flood_accepted=sum(sample.status == 200 for sample in flooded),
        flood_refused=sum(sample.status == 429 for sample in flooded),
        flood_first_token_ms_median=median_ms([sample.first_token for sample in flooded if sample.status == 200]),
        flood_goodput_tokens_s=goodput(flooded, TOKENS) if flooded else 0.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--flood", type=int, default=64)
    parser.add_argument("--running", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = folder / "keys.yaml"
        entries = [{"name": key, "sha256": hashlib.sha256(key.encode()).hexdigest()} for key in ("quiet", "flood")]
        keys.write_text(yaml.safe_dump({"keys": entries}))
        settings = {
            "auth.keys_file": keys,
            "admission.max_running": options.running,
            "admission.max_queued": options.flood,
        }
        arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        with ServerProcess(None, folder / "log", *arguments) as server:
            rows = []
            for phase_name, flood in (("warm-up", 4), ("alone", 0), ("flooded", options.flood), ("alone again", 0)):
                seconds = 5 if phase_name == "warm-up" else options.seconds
                rows.append(asyncio.run(phase(phase_name, server.url, seconds, flood)))
                print(rows[-1], flush=True)
    rows = rows[1:]
    alone = (rows[0]["quiet_first_token_ms_median"] + rows[2]["quiet_first_token_ms_median"]) / 2
    for entry in rows:
        entry["ratio_to_alone"] = round(entry["quiet_first_token_ms_median"] / alone, 2)
    print(f"first token of the quiet key beside the flood: {rows[1]['ratio_to_alone']} times that alone")
    store("fairness", rows)


if __name__ == "__main__":
    main()
