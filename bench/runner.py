"""Speed of plain vLLM on Model Runner V2 as a ratio of its speed on V1, on this CPU: two engines side by side.

    python -m bench.runner [--model DIR] [--kinds greedy ...] [--rounds 3] [--tokens 32] [--eager]

Each engine is a process that decodes when it is told to; orders alternate between the two, and each ratio is that of
two neighbouring orders, so that a machine that grows slower or faster shows in both. Steps are timed one by one. With
them the sampler's largest function alone is timed, on one thread and on all, at a large model's vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.members import make_model
from bench.results_file import store

REQUESTS = (1, 4, 16)
PROMPT_TOKENS = 16
# About 300M parameters.
SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 0.8, "seed": 1},
    "penalties": {"temperature": 0, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    "likely": {"temperature": 0.8, "seed": 1, "top_k": 50, "top_p": 0.9},
}
ROWS, VOCABULARY = 16, 128_256


class Engine:
    """An engine in a process of its own, on one of the runners."""

    def __init__(self, runner: str, model: Path, eager: bool) -> None:
        environment = {
            **os.environ,
            "VLLM_USE_V2_MODEL_RUNNER": runner,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        command = [sys.executable, "-m", "bench.runner", "--engine", "--model", str(model)]
        self.process = subprocess.Popen(
            command + ["--eager"] * eager, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ready = self._answer()

    def steps(self, kind: str, requests: int, tokens: int) -> float:
        """The median time of a decode step, in milliseconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([kind, requests, tokens]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> float:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return float(line.removeprefix("ANSWER "))
        raise RuntimeError(f"the engine ended with {self.process.wait()}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def engine_main(model: str, eager: bool) -> None:
    """Decode by the orders of stdin, and print the median time of a step of each."""
    from vllm import LLM, SamplingParams

    started = time.perf_counter()
    llm = LLM(
        model=model,
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=max(REQUESTS),
        kv_cache_memory_bytes=2**30,
        enable_prefix_caching=False,
        enforce_eager=eager,
    )
    engine: Any = llm.llm_engine
    print(f"ANSWER {time.perf_counter() - started}", flush=True)
    for line in sys.stdin:
        kind, requests, tokens = json.loads(line)
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, detokenize=False, **KINDS[kind])
        for number in range(requests):
            prompt = {"prompt_token_ids": [10 + (31 * number + 7 * i) % 1900 for i in range(PROMPT_TOKENS)]}
            engine.add_request(f"{time.perf_counter()}", prompt, params)
        times = []
        while engine.has_unfinished_requests():
            before = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - before)
        # The first two read the prompts.
        print(f"ANSWER {statistics.median(times[2:]) * 1e3}", flush=True)


def compare(model: Path, kinds: list[str], rounds: int, tokens: int, eager: bool) -> list[dict[str, Any]]:
    """A row for each kind of sampling and number of requests."""
    engines = {runner: Engine(runner, model, eager) for runner in ("0", "1")}
    try:
        for engine in engines.values():
            for kind in kinds:
                for requests in REQUESTS:
                    engine.steps(kind, requests, 4)
        rows = []
        for kind in kinds:
            for requests in REQUESTS:
                pairs = []
                for number in range(rounds):
                    order = ("0", "1") if number % 2 else ("1", "0")
                    pairs.append({runner: engines[runner].steps(kind, requests, tokens) for runner in order})
                ratios = [pair["0"] / pair["1"] for pair in pairs]
                rows.append(
                    {
                        "measured": f"step, {kind}",
                        "requests": requests,
                        "v1_ms": round(statistics.median(pair["0"] for pair in pairs), 2),
                        "v2_ms": round(statistics.median(pair["1"] for pair in pairs), 2),
                        "ratio": round(statistics.median(ratios), 3),
                        "lowest": round(min(ratios), 3),
                        "highest": round(max(ratios), 3),
                    }
                )
                print(rows[-1], flush=True)
        return rows
    finally:
        for engine in engines.values():
            engine.end()


def time_sampler() -> dict[str, Any]:
    """Draw a token for each row from a large vocabulary, on one thread and on all of PyTorch's."""
    from server.engine.cpu_runner.sampling import BLOCK, choose

    logits = torch.randn(ROWS, VOCABULARY)
    blocks = -(-VOCABULARY // BLOCK)
    winners, tops = torch.empty(ROWS, blocks, dtype=torch.int64), torch.empty(ROWS, blocks)
    rows, positions = torch.arange(ROWS), torch.arange(ROWS)
    seeds, temperatures = torch.arange(ROWS), torch.full((ROWS,), 0.8)
    all_threads = torch.get_num_threads()
    times = {}
    for threads in (1, all_threads):
        torch.set_num_threads(threads)
        tries = []
        for _ in range(50):
            before = time.perf_counter()
            choose(winners, tops, logits, rows, seeds, positions, temperatures, False, True, False)
            tries.append(time.perf_counter() - before)
        times[threads] = statistics.median(tries) * 1e3
    row = {
        "measured": f"sampler, {ROWS} x {VOCABULARY}, 1 thread and {all_threads}",
        "v1_ms": round(times[1], 2),
        "v2_ms": round(times[all_threads], 2),
        "ratio": round(times[1] / times[all_threads], 3),
    }
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder; default: random weights of 300M parameters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="default: all")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        engine_main(str(args.model), args.eager)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if model is None:
            model = Path(folder)
            make_model(model, SIZES, seed=0)
        rows = compare(model, args.kinds or list(KINDS), args.rounds, args.tokens, args.eager)
    print(f"stored in {store('runner', [*rows, time_sampler()])}")


if __name__ == "__main__":
    main()
