"""Engine arguments as YAML gives them, on their way into vLLM."""

from __future__ import annotations

from pathlib import Path

from server.config import load_config
from server.engine.launch import engine_args
from server.engine.members import resolve_members


def test_a_reasoning_parser_beside_settings_of_structured_outputs(family: Path) -> None:
    settings = ("engine.reasoning_parser=qwen3", "engine.structured_outputs_config={backend: xgrammar}")
    config = load_config(family, settings)
    made = engine_args(config, resolve_members(config)).create_engine_config().structured_outputs_config
    assert (made.backend, made.reasoning_parser) == ("xgrammar", "qwen3")
