"""What this server costs beside vLLM's own: the same large model, the same load, in alternation.

    python -m bench.overhead [--rounds 3] [--prompts 400] [--concurrency 16]

`vllm serve` (its module, which is the same server) and this server with the large embedded model alone, preset `giant`,
one at a time, each under `vllm bench serve`'s own client. The model is so small that the servers' Python is most of
what is timed: the overhead on a model of a real size is less. Prints and stores output tokens per second and the
median time to the first token, of each round and in the median, and their ratio and difference.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

import zoo

RESULTS = Path(__file__).parent / "results" / "overhead.csv"
MODEL = Path(zoo.__file__ or "").parent / "models" / "large"
INPUT_TOKENS = OUTPUT_TOKENS = 64
KV_BYTES = 2**28
ENVIRONMENT = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore", "VLLM_NO_USAGE_STATS": "1"}
# vLLM's client runs from its module: its command line needs the metadata of a package called `vllm`, and the CPU build
# is called otherwise.
CLIENT = """\
import argparse
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def commands(folder: Path, port: int) -> dict[str, list[str]]:
    """The two servers' commands; theirs logs no requests either, and both schedule up to 64 sequences."""
    config = folder / "giant.yaml"
    config.write_text(
        f"large: {{model: {MODEL}}}\npresets: {{giant: {{weighting: none}}}}\n"
        f"engine: {{max_model_len: 1024, max_num_seqs: 64, dtype: float32, enforce_eager: true, "
        f"kv_cache_memory_bytes: {KV_BYTES}}}\n"
    )
    theirs = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL)]
    theirs += ["--served-model-name", "giant", "--max-model-len", "1024", "--max-num-seqs", "64", "--dtype", "float32"]
    theirs += ["--enforce-eager", "--kv-cache-memory-bytes", str(KV_BYTES), "--uvicorn-log-level", "error"]
    theirs += ["--disable-uvicorn-access-log", "--host", "127.0.0.1", "--port", str(port)]
    ours = [sys.executable, "-m", "server", "serve", "--config", str(config), "--port", str(port)]
    return {"vllm": theirs, "ours": ours}


def run(name: str, folder: Path, loads: list[tuple[int, int]]) -> list[dict[str, float]]:
    """Start one server, put each load of (prompts, concurrency) on it, and stop it."""
    port = free_port()
    with (folder / f"{name}.log").open("w") as log:
        server = subprocess.Popen(
            commands(folder, port)[name], stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 300
        while True:
            try:
                if httpx.get(url + "/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start:\n{(folder / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.5)
        measure(url, folder, 64, 16)  # warms up
        return [measure(url, folder, prompts, concurrency) for prompts, concurrency in loads]
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def measure(url: str, folder: Path, prompts: int, concurrency: int) -> dict[str, float]:
    """One run of vLLM's own client."""
    result = folder / "result.json"
    options: dict[str, Any] = {
        "backend": "openai",
        "endpoint": "/v1/completions",
        "base-url": url,
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
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    if done.returncode:
        raise RuntimeError(f"vLLM's client failed:\n{done.stderr[-2000:]}")
    found = json.loads(result.read_text())
    assert found["completed"] == prompts, found
    return {"tokens_s": found["output_throughput"], "first_token_ms": found["median_ttft_ms"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--concurrency", type=int, default=16)
    options = parser.parse_args()
    loads = [(options.prompts, options.concurrency), (options.prompts // 8, 1)]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for round_number in range(options.rounds):
            # Who goes first alternates too.
            for server in ("vllm", "ours") if round_number % 2 == 0 else ("ours", "vllm"):
                for (_, concurrency), found in zip(loads, run(server, Path(name), loads), strict=True):
                    rows.append({"round": str(round_number), "server": server, "concurrency": concurrency} | found)
                    print(rows[-1], flush=True)
    summary = []
    for _, concurrency in loads:
        medians = {
            server: {
                key: statistics.median(
                    float(row[key]) for row in rows if row["server"] == server and row["concurrency"] == concurrency
                )
                for key in ("tokens_s", "first_token_ms")
            }
            for server in ("vllm", "ours")
        }
        for server, values in medians.items():
            summary.append({"round": "median", "server": server, "concurrency": concurrency} | values)
        ratio = medians["ours"]["tokens_s"] / medians["vllm"]["tokens_s"]
        more = medians["ours"]["first_token_ms"] - medians["vllm"]["first_token_ms"]
        print(f"{concurrency} at once: {ratio:.3f} of vLLM's tokens per second, first token {more:+.2f} ms")
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, summary[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}
            for row in (*rows, *summary)
        )


if __name__ == "__main__":
    main()
