"""What experts cost that are LoRA adapters over one base: weights, and tokens per second.

    python -m bench.adapters [--folder DIR] [--rounds 3] [--dtype bfloat16] [--compile]

Large 665M, base 58M, eight adapters of rank 16 on all linear layers, random weights. Four engines are up at once and
asked in turn: plain vLLM with the large model; the adapters over the base's own weights, as they are served; the same
adapters merged into eight copies of the base; and the base with one whole model as its expert. Every figure is a ratio
of tokens per second within one round, weighting `static`:

    eight, shared   requests that use all eight, to plain vLLM
    eight, copies   the same with copies, to plain vLLM
    one, shared     requests that use one adapter, to plain vLLM
    one, whole      requests that use the one whole model, to plain vLLM

Where a step's cost is reading parameters, those read once allow large / (large + base + adapters) and copies
large / (large + 9 base); where it is multiplying, both allow the latter.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.members import make_members
from bench.members_in_use import QUIET_SECONDS
from bench.results_file import store
from bench.throughput import generate
from server.config import load_config

ADAPTERS, RANK = 8, 16
REQUESTS = (1, 4, 16)


def make_adapters(folder: Path) -> Path:
    """Write the members and adapters into `folder`, unless they are there, and return their configuration file."""
    whole = make_members(folder, 1)
    names = [f"adapter{number}" for number in range(ADAPTERS)]
    for seed, name in enumerate(names):
        if not (folder / name / "adapter_config.json").is_file():
            _make_adapter(folder / "base", folder / name, seed)
    lines = whole.read_text().splitlines()
    start = lines.index("experts:")
    experts = [f"  {name}: {{adapter: ./{name}}}" for name in names]
    presets = ["presets:", "  giant: {weighting: none}"]
    engine = lines[next(i for i, line in enumerate(lines) if line.startswith("engine:")) :]
    config = folder / "adapters.yaml"
    config.write_text("\n".join([*lines[: start + 1], *experts, *presets, *engine]) + "\n")
    return config


def _make_adapter(base: Path, folder: Path, seed: int) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    auto: Any = AutoModelForCausalLM
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(auto.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    model.save_pretrained(str(folder))


async def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The ratios by case and number of requests, as rows of the table."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from fusion_kernels import Weighting
    from server.engine.checks import check_members
    from server.engine.launch import start_engine
    from server.engine.members import resolve_members
    from server.engine.settings import FusionSettings

    overrides = [f"engine.dtype={args.dtype}", f"engine.enforce_eager={str(not args.compile).lower()}"]
    adapters = load_config(make_adapters(args.folder), overrides)
    whole = load_config(make_members(args.folder, 1), overrides)
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # what vLLM itself runs on CPUs
    plain = AsyncLLM.from_engine_args(AsyncEngineArgs(model=whole.large.model, **whole.engine))
    shared = start_engine(adapters, check_members(adapters).members)
    # Members that were not checked are not known to be plain LoRA: each is a copy.
    copies = start_engine(adapters, resolve_members(adapters))
    one = start_engine(whole, resolve_members(whole))
    everyone = FusionSettings(Weighting.STATIC, tuple(range(ADAPTERS)), (0.1,) * ADAPTERS)
    single = FusionSettings(Weighting.STATIC, (0,), (0.5,))
    runs = {
        "plain": (plain, FusionSettings()),
        "eight, shared": (shared, everyone),
        "eight, copies": (copies, everyone),
        "one, shared": (shared, single),
        "one, whole": (one, single),
    }
    weights = {"eight, shared": await _weights(shared), "eight, copies": await _weights(copies)}
    weights |= {"one, shared": weights["eight, shared"], "one, whole": await _weights(one)}
    rates: dict[tuple[str, int], list[float]] = {}
    for round_number in range(args.rounds + 1):
        for requests in REQUESTS:
            for name, (engine, settings) in runs.items():
                await asyncio.sleep(QUIET_SECONDS)
                rate = await generate(engine, [settings] * requests)
                if round_number:  # the first warms everything up
                    rates.setdefault((name, requests), []).append(rate)
    for engine in (plain, shared, copies, one):
        engine.shutdown(timeout=20)
    rows = []
    for (name, requests), found in rates.items():
        ratios = [rate / reference for rate, reference in zip(found, rates["plain", requests], strict=True)]
        rows.append(
            {
                "case": name,
                "requests": requests,
                "tokens_per_s": round(statistics.median(found), 1),
                "ratio_to_plain": round(statistics.median(ratios), 3),
                "lowest": round(min(ratios), 3),
                "highest": round(max(ratios), 3),
                "weight_mib": round(weights[name] / 2**20, 1) if name in weights else None,
                "dtype": args.dtype,
                "compiled": args.compile,
            }
        )
    return rows


async def _weights(engine: Any) -> int:
    (number,), *_ = await engine.on_workers("read_weight_bytes")
    return int(number)


def main() -> None:
    """Measure, print the table, store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "logit-fusion-bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--compile", action="store_true", help="compile the models, as servers do by default")
    rows = asyncio.run(measure(parser.parse_args()))
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"stored in {store('adapters', rows)}")


if __name__ == "__main__":
    main()
