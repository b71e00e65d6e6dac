"""Which members stand on the sides of an expert's pair, and which of them need a KV cache more."""

from __future__ import annotations

from pathlib import Path

import yaml

from server.config import load_config
from server.engine.pairs import Pairs
from server.engine.settings import BASE, LARGE, NOTHING, Pair

EXPERTS = {
    "red": {"model": "./m"},
    "blue": {"model": "./m", "against": "red", "prompt": {"with": {"turns": "last"}}},
    "guide": {"use": "large", "against": "large", "prompt": {"against": {}}},
    "reward": {"use": "red", "against": "none"},
    "late": {"use": "base", "against": "base"},
}


def test_numbers(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    config = {
        "large": {"model": "./m"},
        "base": {"model": "./m"},
        "experts": EXPERTS,
        "presets": {
            "giant": {"weighting": "none"},
            "late": {"experts": ["late"], "prompts": {"late": {"with": {"text": "a"}}}},
        },
    }
    (tmp_path / "fusion.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    pairs = Pairs(load_config(tmp_path / "fusion.yaml"))
    shared = [Pair(1, BASE), Pair(2, 1), Pair(LARGE, LARGE), Pair(1, NOTHING), Pair(BASE, BASE)]
    # Experts of their own weights have a KV cache anyway; the others where a prompt is named, be it by a preset.
    own = [Pair(1, BASE), Pair(2, 1), Pair(LARGE, 8), Pair(1, NOTHING), Pair(5, BASE)]
    assert [pairs.shared(expert) for expert in range(5)] == shared
    assert [pairs.own(expert) for expert in range(5)] == own
    assert list(pairs.twins()) == [(2, 8, LARGE), (4, 5, BASE)]
