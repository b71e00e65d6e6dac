"""Whether the engine takes the memory that `logit-fusion check` says: weights, and tokens in the KV cache.

    python -m bench.gpu.memory [--config FILE] [--set KEY=VALUE ...]

Without a configuration: random members of 665M, 58M and 58M parameters, in bfloat16. Runs on a CPU as well.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.members import make_members
from server.config import load_config

CLOSE = 0.02
"""By so much the weights may differ: what ranks and vocabularies are filled up to."""


async def measure(file: Path, overrides: list[str]) -> tuple[list[str], bool]:
    """What was said and what is, and whether they are close enough."""
    from server.engine.checks import check_members
    from server.engine.checks.capacity import format_bytes, measure_capacity
    from server.engine.launch import start_engine

    report = check_members(load_config(file, overrides))
    said = measure_capacity(report)
    engine: Any = start_engine(report.config, report.members)
    (taken, *_), *_ = await engine.on_workers("read_weight_bytes")
    cache = engine.vllm_config.cache_config
    tokens = cache.num_gpu_blocks * cache.block_size
    engine.shutdown(timeout=20)
    lines = [
        f"weights: {format_bytes(said.weight_bytes)} by check, {format_bytes(taken)} in the engine "
        f"({taken / said.weight_bytes - 1:+.2%})",
        f"tokens in the KV cache: {said.kv_tokens:,} by check, {tokens:,} in the engine "
        f"({tokens / said.kv_tokens - 1:+.2%})",
    ]
    # With room for less than it says, check would have let a start through that fails.
    return lines, abs(taken / said.weight_bytes - 1) <= CLOSE and tokens >= 0.95 * said.kv_tokens


def main() -> int:
    """Compare, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    folder = Path(tempfile.gettempdir()) / "logit-fusion-bench"
    lines, close = asyncio.run(measure(options.config or make_members(folder), options.set))
    print("\n".join(lines))
    return int(not close)


if __name__ == "__main__":
    sys.exit(main())
