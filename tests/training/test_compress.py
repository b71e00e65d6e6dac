"""Experts as adapters, and merges of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from typer.testing import CliRunner

from logit_fusion.cli import app
from server.errors import ConfigError
from tests.models import load_model, make_adapter, make_expert, make_model
from training.compress import compress, divergence
from training.merge import merge

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 300}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A base and two experts of it, in a folder."""
    make_model(tmp_path / "base", **SHAPE)
    make_expert(tmp_path / "red", tmp_path / "base", seed=2)
    make_expert(tmp_path / "blue", tmp_path / "base", seed=3)
    return tmp_path


def state(folder: Path) -> dict[str, torch.Tensor]:
    model: Any = load_model(folder, dtype=torch.float32)
    return dict(model.state_dict())


def adapted(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model: Any = PeftModel.from_pretrained(load_model(base, dtype=torch.float32), str(adapter))
    return dict(model.merge_and_unload().state_dict())


def test_of_full_rank_it_is_the_expert(models: Path) -> None:
    made = compress(models / "base", models / "red", models / "out", 64)
    assert made.kept == pytest.approx(1.0)
    ours, theirs, base = adapted(models / "base", models / "out"), state(models / "red"), state(models / "base")
    for name, tensor in ours.items():
        expected = theirs[name] if "_proj" in name else base[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-5)
    assert set(made.left_out) == {"embed_tokens", "lm_head"}


def test_it_keeps_the_nearest_matrix_of_a_rank(models: Path) -> None:
    made = compress(models / "base", models / "red", models / "out", 4)
    ours, theirs, base = adapted(models / "base", models / "out"), state(models / "red"), state(models / "base")
    for layer in made.layers:
        tau = (theirs[f"{layer.name}.weight"] - base[f"{layer.name}.weight"]).double()
        lost = (theirs[f"{layer.name}.weight"] - ours[f"{layer.name}.weight"]).double()
        # Eckart and Young: what is lost are the other singular values.
        s = torch.linalg.svdvals(tau)
        assert float(lost.square().sum()) == pytest.approx(float(s[layer.rank :].square().sum()), rel=1e-3)
        assert layer.kept == pytest.approx(1 - float(lost.square().sum() / tau.square().sum()), abs=1e-3)
    sizes = {name: sum(tensor.shape) for name, tensor in theirs.items() if "_proj" in name}
    assert made.parameters == 4 * sum(sizes.values())


def test_a_higher_rank_is_nearer(models: Path) -> None:
    texts = ["Some words", "3 + 4 is 7"]
    lost = []
    for rank in (2, 8, 32):
        compress(models / "base", models / "red", models / str(rank), rank)
        lost.append(divergence(models / "base", models / "red", models / str(rank), texts))
    assert lost[0] > lost[1] > lost[2] > 0


def test_the_same_compression_is_the_same_file(models: Path) -> None:
    for name in ("one", "two"):
        compress(models / "base", models / "red", models / name, 4)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (models / "one" / file).read_bytes() == (models / "two" / file).read_bytes()


def test_another_models_expert_is_refused(models: Path) -> None:
    make_model(models / "other", **{**SHAPE, "hidden_size": 128})
    with pytest.raises(
        ConfigError,
        match=r"other is no fine-tuned version of the base: lm_head\.weight is \[300, 128\] there, and \[300, 64\]",
    ):
        compress(models / "base", models / "other", models / "out", 4)
    with pytest.raises(ConfigError, match="there is nothing to compress"):
        compress(models / "base", models / "base", models / "out", 4)
    with pytest.raises(ConfigError, match="holds other things"):
        compress(models / "base", models / "red", models / "blue", 4)


def test_a_linear_merge_is_task_arithmetic(models: Path) -> None:
    adapter = make_adapter(models / "lora", models / "base")
    merge(models / "base", [(models / "red", 0.5), (adapter, -0.25)], models / "out")
    base, red, lora = state(models / "base"), state(models / "red"), adapted(models / "base", adapter)
    for name, tensor in state(models / "out").items():
        expected = base[name] + 0.5 * (red[name] - base[name]) - 0.25 * (lora[name] - base[name])
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["magnitude-prune", "ties", "dare-linear", "dare-ties"])
def test_other_methods_thin_out(models: Path, method: str) -> None:
    experts = [(models / "red", 1.0), (models / "blue", 1.0)]
    merge(models / "base", experts, models / "thin", method=method, density=0.1, seed=5)
    merge(models / "base", experts, models / "again", method=method, density=0.1, seed=5)
    base, thin, again = (state(models / name) for name in ("base", "thin", "again"))
    names = [name for name in base if "_proj" in name]
    changed = sum(int((thin[name] != base[name]).sum()) for name in names) / sum(base[name].numel() for name in names)
    # A tenth of each of two experts' values, at the same places at most now and then.
    assert 0.1 < changed < 0.21
    assert all(torch.equal(thin[name], again[name]) for name in base)


def test_a_merge_of_adapters_is_an_adapter_of_their_ranks(models: Path) -> None:
    adapters = [make_adapter(models / f"lora{seed}", models / "base", seed=seed, rank=3) for seed in (4, 5)]
    made = merge(models / "base", [(adapter, 0.5) for adapter in adapters], models / "out", rank=6)
    assert made is not None
    assert made.kept == pytest.approx(1.0, abs=1e-4)
    ours, base = adapted(models / "base", models / "out"), state(models / "base")
    parts = [adapted(models / "base", adapter) for adapter in adapters]
    for name, tensor in ours.items():
        expected = base[name] + sum(0.5 * (part[name] - base[name]) for part in parts)
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-4)


def test_the_commands(models: Path) -> None:
    (models / "texts").write_text("Some words\n\n3 + 4 is 7\n")
    runner = CliRunner()
    base = ["--base", str(models / "base")]
    said = runner.invoke(
        app, ["compress", str(models / "red"), str(models / "c"), *base, "--rank", "4", "--on", str(models / "texts")]
    )
    assert said.exit_code == 0, said.output
    assert "model.layers.0.mlp.down_proj" in said.output
    assert "Left as in the base: embed_tokens, lm_head." in said.output
    assert "KL(expert || adapter): " in said.output
    weighted = [f"{models / 'red'}=0.5", f"{models / 'blue'}=0.5"]
    said = runner.invoke(app, ["merge", str(models / "m"), *weighted, *base, "--method", "ties"])
    assert said.exit_code == 0, said.output
    assert (models / "m" / "model.safetensors").is_file()
    said = runner.invoke(app, ["merge", str(models / "m2"), f"{models / 'red'}=half", *base])
    assert isinstance(said.exception, ConfigError)
    assert "'half' in" in str(said.exception)
