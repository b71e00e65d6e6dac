"""How long a server takes until it is ready, and what memory it then holds, beside vLLM's own server.

    python -m bench.start [--rounds 3]

The embedded models: vLLM's own server with the large one, this server with the large one alone, and with base and three
experts; started in turn, each from a cold process and with warm files. `memory_mib` is the proportional set size (PSS)
of all of a server's processes once it answers, its KV cache included, which is of the same size in all.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from bench.overhead import ENVIRONMENT, KV_BYTES, MODEL
from bench.results_file import store
from server.launcher import Launched


def commands(folder: Path) -> dict[str, list[str]]:
    """What starts each server, without its port."""
    config = folder / "giant.yaml"
    config.write_text(f"large: {{model: {MODEL}}}\npresets: {{giant: {{weighting: none}}}}\n")
    engine = {"dtype": "float32", "enforce_eager": "true", "max_model_len": "512", "max_num_seqs": "64"}
    engine["kv_cache_memory_bytes"] = str(KV_BYTES)
    ours = [sys.executable, "-m", "server", "serve"]
    ours += [part for key, value in engine.items() for part in ("--set", f"engine.{key}={value}")]
    theirs = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL)]
    for key, value in engine.items():
        theirs += [f"--{key.replace('_', '-')}"] + [value] * (value != "true")
    return {"vllm": theirs, "large alone": [*ours, "--config", str(config)], "three experts": ours}


def start(command: list[str], log: Path) -> tuple[float, float]:
    """Seconds from the command to the first healthy answer, and the MiB that its processes hold then."""
    started = time.perf_counter()
    with Launched(command, log, ENVIRONMENT) as server:
        seconds = time.perf_counter() - started
        main = psutil.Process(server.process.pid)
        memory = sum(each.memory_full_info().pss for each in (main, *main.children(recursive=True)))
    return seconds, memory / 2**20


def main() -> None:
    """Measure, print the table, store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for round_number in range(rounds + 1):
            for name, command in commands(Path(folder)).items():
                figures = start(command, Path(folder) / "log")
                if round_number:  # the first reads files and compiles kernels for the rest
                    found.setdefault(name, []).append(figures)
    rows: list[dict[str, Any]] = [
        {
            "server": name,
            "ready_s": round(statistics.median(seconds for seconds, _ in figures), 2),
            "memory_mib": round(statistics.median(memory for _, memory in figures)),
        }
        for name, figures in found.items()
    ]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"stored in {store('start', rows)}")


if __name__ == "__main__":
    main()
