"""What this server costs beside vLLM's own: the same large model, the same load, in alternation.

    python -m bench.overhead [--rounds 7] [--prompts 200] [--concurrency 16]

`vllm serve` (its module, which is the same server) and this server with the large embedded model alone, preset `giant`,
both started once; in each round `vllm bench serve`'s own client loads one while the other waits, then the other. The
model is so small that the servers' Python is most of what is timed: the overhead on a model of a real size is less.
Prints and stores output tokens per second, the median time to the first token and the processor's milliseconds for each
token (all processes of the server) of each round, and the medians over the rounds of their ratios and difference, with
the range of the middle half. On a machine that others use too the processor's time is the figure that can be relied on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from bench.results_file import store
from server.launcher import Launched
from zoo import FAMILY

MODEL = FAMILY / "models" / "large"
INPUT_TOKENS = OUTPUT_TOKENS = 64
KV_BYTES = 2**28
ENVIRONMENT = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore", "VLLM_NO_USAGE_STATS": "1"}
# vLLM's client runs from its module: its command line needs the metadata of a package called `vllm`, and the CPU build
# is called otherwise.
CLIENT = """\
import argparse
from bench.turn import go_first
go_first()
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def commands(folder: Path) -> dict[str, list[str]]:
    """The two servers' commands but for the port; theirs logs no requests either, both schedule up to 64 sequences."""
    config = folder / "giant.yaml"
    config.write_text(
        f"large: {{model: {MODEL}}}\npresets: {{giant: {{weighting: none}}}}\n"
        f"engine: {{max_model_len: 1024, max_num_seqs: 64, dtype: float32, enforce_eager: true, "
        f"kv_cache_memory_bytes: {KV_BYTES}}}\n"
    )
    theirs = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL)]
    theirs += ["--served-model-name", "giant", "--max-model-len", "1024", "--max-num-seqs", "64", "--dtype", "float32"]
    theirs += ["--enforce-eager", "--kv-cache-memory-bytes", str(KV_BYTES), "--uvicorn-log-level", "error"]
    theirs += ["--disable-uvicorn-access-log", "--host", "127.0.0.1"]
    ours = [sys.executable, "-m", "server", "serve", "--config", str(config)]
    return {"vllm": theirs, "ours": ours}


def cpu_seconds(pid: int) -> float:
    """What a server and all its processes have used of the processor."""
    server = psutil.Process(pid)
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return float(sum(time.user + time.system for time in times))


def measure(server: Launched, folder: Path, prompts: int, concurrency: int) -> dict[str, float]:
    """One run of vLLM's own client.

    Raises:
        RuntimeError: it failed.
    """
    result = folder / "result.json"
    options: dict[str, Any] = {
        "backend": "openai",
        "endpoint": "/v1/completions",
        "base-url": server.url,
        "model": MODEL,
        "served-model-name": "giant",
        "dataset-name": "random",
        "random-input-len": INPUT_TOKENS,
        "random-output-len": OUTPUT_TOKENS,
        "num-prompts": prompts,
        "max-concurrency": concurrency,
        "result-dir": folder,
        "result-filename": result.name,
    }
    command = [sys.executable, "-c", CLIENT, "--ignore-eos", "--save-result", "--disable-tqdm"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    before = cpu_seconds(server.process.pid)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    used = cpu_seconds(server.process.pid) - before
    if done.returncode:
        raise RuntimeError(f"vLLM's client failed:\n{done.stderr[-2000:]}")
    found = json.loads(result.read_text())
    assert found["completed"] == prompts, found
    return {
        "tokens_s": found["output_throughput"],
        "first_token_ms": found["median_ttft_ms"],
        "cpu_ms_per_token": used * 1000 / (prompts * OUTPUT_TOKENS),
    }


def compare(rounds: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Medians over the rounds, and of the pairs' ratios and differences with their quartiles."""
    ratios = [pair["ours"]["tokens_s"] / pair["vllm"]["tokens_s"] for pair in rounds]
    later = [pair["ours"]["first_token_ms"] - pair["vllm"]["first_token_ms"] for pair in rounds]
    work = [pair["ours"]["cpu_ms_per_token"] / pair["vllm"]["cpu_ms_per_token"] for pair in rounds]
    found: dict[str, float] = {}
    for name, values in (("ratio", ratios), ("first_token_later_ms", later), ("cpu_ratio", work)):
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        found |= {name: middle, f"{name}_q1": low, f"{name}_q3": high}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=16)
    options = parser.parse_args()
    loads = [(options.prompts, options.concurrency), (options.prompts // 8, 1)]
    pairs: dict[int, list[dict[str, dict[str, float]]]] = {concurrency: [] for _, concurrency in loads}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        servers = {
            name: stack.enter_context(Launched(command, folder / f"{name}.log", ENVIRONMENT))
            for name, command in commands(folder).items()
        }
        for server in servers.values():
            measure(server, folder, 64, 16)  # warms up
        for round_number in range(options.rounds):
            # Who goes first alternates too.
            order = list(servers) if round_number % 2 == 0 else list(servers)[::-1]
            for prompts, concurrency in loads:
                pair = {name: measure(servers[name], folder, prompts, concurrency) for name in order}
                pairs[concurrency].append(pair)
                print(round_number, concurrency, pair, flush=True)
    rows: list[dict[str, Any]] = []
    for concurrency, rounds in pairs.items():
        for number, pair in enumerate(rounds):
            rows += [{"concurrency": concurrency, "round": number, "server": name} | pair[name] for name in servers]
        found = compare(rounds)
        rows.append({"concurrency": concurrency, "round": "median"} | found)
        print(
            f"{concurrency} at once: {found['ratio']:.3f} [{found['ratio_q1']:.3f}, {found['ratio_q3']:.3f}] of vLLM's "
            f"tokens per second, first token {found['first_token_later_ms']:+.2f} "
            f"[{found['first_token_later_ms_q1']:+.2f}, {found['first_token_later_ms_q3']:+.2f}] ms, "
            f"{found['cpu_ratio']:.3f} [{found['cpu_ratio_q1']:.3f}, {found['cpu_ratio_q3']:.3f}] of its processor time"
        )
    rounded = [
        {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()} for row in rows
    ]
    store("overhead", rounded)


if __name__ == "__main__":
    main()
