"""What requests get that do not say it themselves: read from the large model's file, said, and turned off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vllm.config import ModelConfig

from tests.server.family import check, edit, fault

HOT = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.3}


def hot(family: Path, **settings: Any) -> None:
    edit(family / "large" / "generation_config.json", **(settings or HOT))


@pytest.mark.parametrize(
    "engine",
    [
        {},
        {"generation_config": "vllm"},
        {"generation_config": "FOLDER/red"},
        {"override_generation_config": {"temperature": 0.2, "presence_penalty": 0.5, "max_new_tokens": 7}},
        {"generation_config": "vllm", "override_generation_config": {"min_p": 0.1}},
    ],
)
def test_they_are_what_vllm_will_apply(family: Path, engine: dict[str, Any]) -> None:
    hot(family)
    edit(family / "red" / "generation_config.json", do_sample=True, temperature=0.3)
    if engine.get("generation_config") == "FOLDER/red":
        engine = {"generation_config": str(family / "red")}
    report = check(family, *(f"engine.{name}={json.dumps(value)}" for name, value in engine.items()))
    config = ModelConfig(model=str(family / "large"), **engine)
    assert report.sampling_defaults == config.get_diff_sampling_param()
    assert report.as_dict()["sampling_defaults"] == report.sampling_defaults


def test_a_file_without_any_is_not_worth_a_word(family: Path) -> None:
    report = check(family)
    assert (report.sampling_defaults, report.remarks) == ({}, ())


def test_a_remark_says_what_where_from_and_how_not(family: Path) -> None:
    hot(family)
    (remark,) = check(family).remarks
    assert remark == (
        "requests that leave them out get, from the large model's generation_config.json: repetition_penalty 1.3, "
        "temperature 0.6, top_k 20, top_p 0.9; the penalties hold at temperature 0 too, whose answers are then not the "
        "likeliest tokens (engine.generation_config: vllm takes none of the file's)"
    )
    assert check(family, "engine.generation_config=vllm").remarks == ()
    hot(family, repetition_penalty=None, temperature=0.6)
    (remark,) = check(family).remarks
    assert "penalties" not in remark
    (remark,) = check(family, "engine.generation_config=vllm", "engine.override_generation_config={top_k: 5}").remarks
    assert remark == "requests that leave them out get, from engine.override_generation_config: top_k 5"


def test_a_folder_without_the_file_is_a_fault(family: Path) -> None:
    (family / "empty").mkdir()
    assert fault(family, f"engine.generation_config={family}/empty") == (
        "engine.generation_config: 'empty' has no generation_config.json; it should be auto, vllm, or a folder that "
        "has one"
    )
