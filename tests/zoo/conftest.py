"""A family trained by the micro recipe, once for all tests that read it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zoo.build import DATA, build
from zoo.recipe import MICRO


@pytest.fixture(scope="session")
def stages_seen() -> dict[str, int]:
    return {}


@pytest.fixture(scope="session")
def micro_family(tmp_path_factory: pytest.TempPathFactory, stages_seen: dict[str, int]) -> Path:
    out = tmp_path_factory.mktemp("zoo")

    def stage(name: str, tokens: int) -> Callable[[int, float], None]:
        stages_seen[name] = 0

        def step(read: int, loss: float) -> None:
            stages_seen[name] += read

        return step

    # Models this small gain nothing from a second thread, and lose much where other work has the cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    build(MICRO, DATA, out, 0, stage)
    torch.set_num_threads(threads)
    return out
