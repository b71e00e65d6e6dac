"""Adapters that share the base's weights: run as one with it, each request against whole models in a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel

from server.config import load_config
from server.engine.checks import check_members
from tests.engine.engines import running
from tests.engine.families import PROJECTIONS
from tests.engine.pair_loop import PairLoop
from tests.engine.test_own_prompts import EXPERTS as COMPARED
from tests.engine.test_own_prompts import PAIRS, check_pairs
from tests.engine.test_random_batches import CHUNKS, COMPILED, DRAFTED, LONG, TWO_WORKERS, check_batch
from tests.hf_loop import HFLoop
from tests.models import load_model, make_adapter, make_family

RED: dict[str, Any] = {"rank": 4, "target_modules": PROJECTIONS, "seed": 2}
BLUE: dict[str, Any] = {"rank": 6, "target_modules": ("q_proj", "v_proj", "o_proj", "down_proj"), "seed": 3}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family whose experts are adapters of unlike ranks over unlike layers; beside them, the same as whole models."""
    config = make_family(tmp_path_factory.mktemp("adapters"))
    folder = config.parent
    for name, settings in (("red", RED), ("blue", BLUE)):
        adapter = make_adapter(folder / f"{name}-lora", folder / "base", **settings)
        merged: Any = PeftModel.from_pretrained(load_model(folder / "base", dtype=torch.float32), str(adapter))
        merged.merge_and_unload().save_pretrained(folder / name)
    _write(config, {"red": {"adapter": "red-lora"}, "blue": {"adapter": "blue-lora"}})
    return config


def _write(config: Path, experts: dict[str, Any]) -> None:
    settings = yaml.safe_load(config.read_text())
    settings |= {"experts": experts, "presets": {"giant": {"weighting": "none"}}}
    config.write_text(yaml.safe_dump(settings, sort_keys=False))


@pytest.mark.parametrize(
    ("number", "seed", "options"),
    [
        pytest.param(40, 21, [CHUNKS], id="chunks"),
        pytest.param(200, 22, [CHUNKS], id="200-chunks", marks=LONG),
        pytest.param(200, 23, [CHUNKS, TWO_WORKERS], id="200-two-workers", marks=LONG),
        pytest.param(200, 24, [CHUNKS, COMPILED], id="200-compiled", marks=LONG),
        pytest.param(200, 25, [CHUNKS, *DRAFTED], id="200-drafted", marks=LONG),
    ],
)
async def test_every_request_is_that_of_merged_weights(
    family: Path, monkeypatch: pytest.MonkeyPatch, number: int, seed: int, options: list[str]
) -> None:
    oracle = HFLoop(family.parent, ["red", "blue"])
    await check_batch(family, oracle, monkeypatch, number, seed, options)


@LONG
@pytest.mark.parametrize("number", [40, 200])
async def test_adapters_read_prompts_of_their_own(family: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Adapters once more, and against each other; `red` and `blue` are adapters, all else is made of members."""
    config = family.with_name("pairs.yaml")
    config.write_text(family.read_text())
    experts = {name: dict(expert) for name, expert in COMPARED.items()}
    for name in ("red", "blue"):
        del experts[name]["model"]
        experts[name]["adapter"] = f"{name}-lora"
    _write(config, experts)
    await check_pairs(config, PairLoop(family.parent, PAIRS), monkeypatch, number, 26, [CHUNKS])


async def test_the_weights_take_what_check_says(family: Path) -> None:
    report = check_members(load_config(family))
    weights = {each.member.name: each.weight_bytes for each in report.reports}
    for name in ("red", "blue"):
        file = (family.parent / f"{name}-lora" / "adapter_model.safetensors").stat().st_size
        assert 0.9 * file < weights[name] < file
        assert weights[name] < weights["base"] / 4
    async with running(family) as engine:
        (taken,), *_ = await engine.on_workers("read_weight_bytes")
    # Ranks are filled up to the highest.
    assert sum(weights.values()) <= taken < 1.05 * sum(weights.values())
