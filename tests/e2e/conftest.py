"""One real server over a tiny random family, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.hf_loop import HFLoop
from tests.models import make_family
from tests.server_process import ServerProcess


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration file of a float32 family: large, base, experts red and blue."""
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def server(family: Path) -> Iterator[ServerProcess]:
    with ServerProcess(family, family.parent / "server.log") as process:
        yield process


@pytest.fixture(scope="session")
def oracle(family: Path) -> HFLoop:
    return HFLoop(family.parent, ["red", "blue"])


@pytest.fixture
def client(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture
def async_client(server: ServerProcess) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
