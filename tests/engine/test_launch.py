"""What cannot work is refused before anything loads, by a sentence that names the engine argument."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from vllm.usage.usage_lib import UsageContext

from server.config import load_config
from server.engine.checks.architecture import check_side_by_side
from server.engine.launch import check_engine_config, engine_args
from server.engine.member_config import small_config
from server.engine.members import resolve_members
from server.errors import ConfigError
from tests.engine.families import make, sparse_members
from tests.families.build import make_family_of


def check(config_file: Path, *overrides: str) -> None:
    config = load_config(config_file, overrides)
    members = resolve_members(config)
    check_side_by_side(members, config.engine)
    vllm_config = engine_args(config, members).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    check_engine_config(vllm_config, members)


@pytest.fixture(autouse=True)
def runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")


def test_what_works_is_let_through(family: Path) -> None:
    check(family)


def test_a_loader_that_knows_one_model_only(family: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.load_format: 'sharded_state' loads the large model alone"):
        check(family, "engine.load_format=sharded_state")


def test_mixtures_of_experts_over_data_parallel_ranks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.data_parallel_size: large\.model is a mixture of experts"):
        check(make(sparse_members, tmp_path), "engine.data_parallel_size=2")


@pytest.mark.parametrize(
    "override", ["engine.spec_method=ngram", "engine.spec_tokens=2", "engine.offload_group_size=2"]
)
def test_what_no_member_could_follow(family: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=rf"{override.partition('=')[0]} cannot be set: "):
        check(family, override)


def test_compiled_code_that_names_layers(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_LAYERNAME", "0")
    with pytest.raises(ConfigError, match="VLLM_USE_LAYERNAME=0"):
        check(family)


def test_connectors_by_another_name(family: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.kv_offloading_size cannot be set"):
        check(family, "engine.kv_offloading_size=1")


def test_a_reasoning_parser_beside_settings_of_structured_outputs(family: Path) -> None:
    settings = ("engine.reasoning_parser=qwen3", "engine.structured_outputs_config={disable_any_whitespace: true}")
    config = load_config(family, settings)
    made = engine_args(config, resolve_members(config)).create_engine_config().structured_outputs_config
    assert (made.disable_any_whitespace, made.reasoning_parser) == (True, "qwen3")


def test_members_are_configured_as_vllm_would_alone(tmp_path: Path) -> None:
    """vLLM adapts some architectures by name (`MODELS_CONFIG_MAP`), and the composite's name is none of those."""
    config_file, _ = make_family_of(tmp_path, "gpt_oss")
    for name in ("large", "base", "tuned"):
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}))
    config = load_config(config_file, ["engine.dtype=bfloat16"])
    args = engine_args(config, resolve_members(config))
    vllm_config = args.create_engine_config()
    assert vllm_config.model_config.quantization == "gpt_oss_mxfp4"
    assert vllm_config.structured_outputs_config.reasoning_parser == "openai_gptoss"
    assert small_config(vllm_config, str(tmp_path / "base")).model_config.quantization == "gpt_oss_mxfp4"
