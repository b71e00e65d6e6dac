"""Whether adapters and merges fit the base, over tiny random models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.families.quantise import FORMATS
from tests.models import make_adapter, make_expert, make_model
from tests.server.family import LORA, check, edit, fault


def edit_tensors(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "the adapter is of type IA3; only LORA adapters are served"),
        ({"target_parameters": ["mlp.experts"]}, "the adapter uses target_parameters, which is not served; merge it"),
        ({"init_lora_weights": "pissa"}, "the adapter started from pissa, which changes the base's weights too"),
        ({"lora_alpha": None}, "lora/adapter_config.json: lora_alpha must be a number above 0, not None"),
        ({"r": 8}, "model.layers.0.self_attn.q_proj has rank 4, but adapter_config.json says 8"),
        ({"rank_pattern": {"v_proj": 2}}, "model.layers.0.self_attn.v_proj has rank 4, but adapter_config.json says 2"),
    ],
)
def test_adapters_of_other_kinds(family: Path, changes: dict[str, Any], message: str) -> None:
    edit(family / "lora" / "adapter_config.json", **changes)
    assert fault(family, LORA).startswith(f"experts.lora.adapter: {message}")


def test_adapters_over_another_model(family: Path, tmp_path: Path) -> None:
    assert check(family, LORA).remarks == ()
    other = make_model(tmp_path / "other", hidden_size=96)
    make_adapter(family / "lora", other)
    assert fault(family, LORA) == (
        "experts.lora.adapter: the adapter does not fit the base: for model.layers.0.self_attn.q_proj.weight, [64, 64] "
        "in the base, it has [64, 96]; it was trained over another model, or one with added tokens"
    )
    deeper = make_model(tmp_path / "deeper", layers=3)
    make_adapter(family / "lora", deeper)
    assert "the adapter changes model.layers.2.self_attn.q_proj.weight, which the base does not have" in fault(
        family, LORA
    )
    same_shape = make_expert(tmp_path / "same", family / "base")
    make_adapter(family / "lora", same_shape)
    (remark,) = check(family, LORA).remarks
    assert remark == f"lora: the adapter says it was trained over '{same_shape}'; its shapes fit"


def test_adapters_with_missing_files(family: Path) -> None:
    path = family / "lora" / "adapter_model.safetensors"

    def forget(tensors: dict[str, Any]) -> None:
        del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]

    edit_tensors(path, forget)
    assert "the adapter lacks lora_B of model.layers.0.self_attn.q_proj" in fault(family, LORA)
    path.unlink()
    assert "only adapters saved as safetensors are served" in fault(family, LORA)
    (family / "lora" / "adapter_config.json").unlink()
    assert "lora has no adapter_config.json" in fault(family, LORA)
    assert "it is a whole model, so name it under 'model'" in fault(family, "experts.lora={adapter: ./red}")


@pytest.mark.parametrize(
    "settings",
    [
        {"rank_pattern": {"q_proj": 8}},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"modules_to_save": ["lm_head", "norm"]},
        {"use_dora": True},
        {"bias": "all"},
        {"trainable_token_indices": [5, 511]},
    ],
)
def test_adapters_that_fit(family: Path, settings: dict[str, Any]) -> None:
    make_adapter(family / "lora", family / "base", **settings)
    assert check(family, LORA).reports[-1].member.kind == "adapter"


def test_adapters_of_one_matrix_for_embeddings_and_head(family: Path) -> None:
    make_model(family / "base", tie_word_embeddings=True)
    make_adapter(family / "lora", family / "base", trainable_token_indices=[5])
    check(family, LORA)
    make_adapter(family / "lora", family / "base", modules_to_save=["embed_tokens"])
    assert "the adapter changes model.embed_tokens.weight, but the base uses one matrix for" in fault(family, LORA)


def test_adapters_with_added_tokens(family: Path, tmp_path: Path) -> None:
    longer = make_model(tmp_path / "longer", vocab_size=514)
    make_adapter(family / "lora", longer, modules_to_save=["embed_tokens"])
    assert "for model.embed_tokens.weight, [512, 64] in the base, it has [514, 64]" in fault(family, LORA)
    make_adapter(family / "lora", longer, trainable_token_indices=[513])
    assert "the adapter trains the token 513, and the base has 512" in fault(family, LORA)


def test_tensors_that_are_no_part_of_lora(family: Path) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight"] = next(iter(tensors.values())).clone()

    edit_tensors(family / "lora" / "adapter_model.safetensors", add)
    assert "q_proj.lora_C.weight, which is no part of LoRA; merge it and name" in fault(family, LORA)


def test_an_adapter_named_as_a_model(family: Path) -> None:
    assert fault(family, "experts.lora={model: ./lora}") == (
        "experts.lora.model: lora has no config.json; it is a LoRA adapter, so name it under 'adapter' of an expert"
    )


def test_merges_over_another_shape(family: Path) -> None:
    make_model(family / "red", intermediate_size=96)
    assert fault(family, "experts.mix={merge: {blue: 1, red: 1}}") == (
        "experts.mix.merge: 'red' cannot be merged over the base: model.layers.0.mlp.down_proj.weight is [64, 96] "
        "there and [64, 128] in the base"
    )
    make_model(family / "red", layers=1)
    assert "'red' cannot be merged over the base: its model lacks model.layers.1." in fault(
        family, "experts.mix={merge: {red: 1}}"
    )


def test_nothing_is_added_to_quantised_weights(family: Path) -> None:
    FORMATS["int8"](family / "base")
    assert fault(family, LORA).startswith(
        "experts.lora.adapter: 'base' is quantised (compressed-tensors), and nothing can be added"
    )
    report = check(family)
    assert report.reports[1].member.quantisation == "compressed-tensors"
