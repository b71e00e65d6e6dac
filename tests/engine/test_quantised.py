"""Quantised members answer as plain vLLM does with the same checkpoint, in every role, whatever they leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.families import LARGE
from tests.engine.plain import ROLES, alone, by_role
from tests.families.quantise import int8
from tests.models import make_expert, make_model

# What each checkpoint leaves as it was: a layer by its name, by a pattern, and the parts of one that vLLM fuses.
IGNORED = {
    "large": ["model.layers.1.mlp.down_proj"],
    "base": ["re:.*layers[.]0[.]self_attn.*"],
    "red": ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.o_proj"],
}
LEFT = {
    "large": ("layers.1.mlp.down_proj",),
    "base": ("layers.0.self_attn",),
    "red": ("layers.0.mlp.gate_proj", "layers.0.mlp.up_proj", "layers.1.self_attn.o_proj"),
}


@pytest.mark.long
async def test_int8_in_every_role(tmp_path: Path) -> None:
    make_model(tmp_path / "large", **LARGE)
    make_model(tmp_path / "base", seed=1)
    make_expert(tmp_path / "red", tmp_path / "base", seed=2)
    for name, ignore in IGNORED.items():
        int8(tmp_path / name, ignore, LEFT[name])
    ours = await by_role(tmp_path)
    assert ours["steered"] == ours["large"]
    for name in ROLES:
        assert await alone(tmp_path / name) == ours[name]
