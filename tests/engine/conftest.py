"""A tiny float32 family and its reference, shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hf_loop import HFLoop
from tests.models import make_family


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration file of a float32 family: large, base, experts red and blue."""
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def oracle(family: Path) -> HFLoop:
    return HFLoop(family.parent, ["red", "blue"])
