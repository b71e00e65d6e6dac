"""A family of tiny models, built once and copied for each test that spoils it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models import make_adapter, make_family


@pytest.fixture(scope="session")
def built_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large, base, experts `red` and `blue`, and `lora`, an adapter over the base; to read, not to change."""
    folder = tmp_path_factory.mktemp("family")
    make_family(folder)
    make_adapter(folder / "lora", folder / "base")
    return folder


@pytest.fixture
def family(built_family: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the family that a test may spoil."""
    folder = tmp_path / "family"
    shutil.copytree(built_family, folder)
    yield folder
    shutil.rmtree(folder)
