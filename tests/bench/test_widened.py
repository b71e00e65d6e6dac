"""A widened model costs more and says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bench.widened import widen
from zoo import FAMILY


def test_a_widened_model_says_what_the_model_says(tmp_path: Path) -> None:
    source = FAMILY / "models" / "math"
    widen(source, tmp_path, layers=6, parameters=4_000_000)
    models: list[Any] = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64) for folder in (source, tmp_path)
    ]
    assert abs(models[1].num_parameters() - 4_000_000) < 0.05 * 4_000_000
    tokens = torch.arange(3, 60)[None]
    with torch.inference_mode():
        first, second = (model(tokens).logits for model in models)
    torch.testing.assert_close(first, second, atol=1e-9, rtol=0)
