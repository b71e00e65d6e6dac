"""Routers: what they choose, and their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from server.engine.routing.router import Router, fingerprint
from server.errors import ConfigError

CLASSES = ("math", "facts", "text", "none")


def router(threshold: float = 0.5) -> Router:
    return Router(torch.eye(4), torch.zeros(4), CLASSES, threshold, "base")


@pytest.mark.parametrize(
    ("probabilities", "top", "chosen"),
    [
        ([0.8, 0.1, 0.05, 0.05], 1, ["math"]),
        ([0.1, 0.8, 0.05, 0.05], 1, ["facts"]),
        ([0.5, 0.3, 0.15, 0.05], 2, ["math", "facts"]),
        ([0.5, 0.3, 0.15, 0.05], None, ["math", "facts", "text"]),
        ([0.6, 0.3, 0.05, 0.05], None, ["math", "facts"]),  # less than a tenth
        ([0.3, 0.1, 0.1, 0.5], None, []),  # none is the likeliest
        ([0.4, 0.3, 0.2, 0.1], 1, []),  # not sure enough of one
        ([0.4, 0.3, 0.2, 0.1], 2, ["math", "facts"]),  # but of two
        ([0.2, 0.2, 0.6, 0.0], 1, ["text"]),
    ],
)
def test_what_is_chosen(probabilities: list[float], top: int | None, chosen: list[str]) -> None:
    assert router().choose(np.array(probabilities), CLASSES[:3], top) == chosen


def test_an_expert_that_the_preset_leaves_out_is_as_none() -> None:
    assert router().choose(np.array([0.9, 0.1, 0.0, 0.0]), ["facts"], 1) == []
    assert router(0.1).choose(np.array([0.3, 0.6, 0.1, 0.0]), ["facts", "text"], None) == ["facts", "text"]


def test_states_that_are_no_numbers_choose_none() -> None:
    assert router(0.0).choose(np.full(4, np.nan), CLASSES[:3], None) == []


def test_probabilities_are_the_softmax_of_a_linear_map() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(4, 8, generator=generator), torch.randn(4, generator=generator)
    states = torch.randn(5, 8, generator=generator).bfloat16()
    found = Router(weight, bias, CLASSES, 0.5, "base").probabilities(states)
    expected = torch.softmax(states.double() @ weight.double().T + bias.double(), dim=-1)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    file = tmp_path / "router.safetensors"
    router(0.25).save(file)
    found = Router.load(file)
    assert torch.equal(found.weight, torch.eye(4))
    assert (found.classes, found.threshold, found.base) == (CLASSES, 0.25, "base")


def test_other_files_are_none(tmp_path: Path) -> None:
    other = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1)}, other)
    with pytest.raises(ConfigError, match=r"model\.safetensors is no router; `logit-fusion route fit` writes one"):
        Router.load(other)
    (tmp_path / "text").write_text("a router")
    with pytest.raises(ConfigError, match="is no router, or cannot be read"):
        Router.load(tmp_path / "text")


def test_other_weights_have_another_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    seen = set()
    for value in (0.0, 1.0):
        save_file({"weight": torch.full((100_000,), value)}, file)
        seen.add(fingerprint(tmp_path))
    assert len(seen) == 2
    assert fingerprint(tmp_path) in seen
