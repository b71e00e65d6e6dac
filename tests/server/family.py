"""Helpers for tests that check a family of tiny models: spoil a copy, and read the fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.config import load_config
from server.engine.checks import Report, check_members
from server.errors import ConfigError

LORA = "experts.lora={adapter: ./lora}"


def check(folder: Path, *overrides: str) -> Report:
    return check_members(load_config(folder / "fusion.yaml", overrides))


def fault(folder: Path, *overrides: str) -> str:
    """The one line that checking a faulty family gives, without the folder's name."""
    with pytest.raises(ConfigError) as caught:
        check(folder, *overrides)
    message = str(caught.value).replace(f"{folder}/", "")
    assert "\n" not in message
    return message


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
