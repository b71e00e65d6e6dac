"""Real servers over a tiny random family, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.collector import Collector
from tests.hf_loop import HFLoop
from tests.models import make_family
from tests.server_process import ServerProcess


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration file of a float32 family: large, base, experts red and blue."""
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="package")
def server(family: Path) -> Iterator[ServerProcess]:
    """With the settings that there are by default; after all that was done to it, it ends as it should."""
    with ServerProcess(family, family.parent / "server.log") as process:
        yield process
        process.end()


class Configured(NamedTuple):
    """A server, and the collector that its spans go to."""

    server: ServerProcess
    collector: Collector


@pytest.fixture(scope="package")
def configured(family: Path) -> Iterator[Configured]:
    """With engine arguments: traces are exported, more sequences run at once, and grammars leave out white space, of
    which random models would write no end. It keeps no responses.
    """
    with Collector() as collector:
        settings = {
            "engine.otlp_traces_endpoint": collector.endpoint,
            "engine.structured_outputs_config": "{backend: xgrammar, disable_any_whitespace: true}",
            "engine.max_num_seqs": 32,
            "limits.stored_responses": 0,
        }
        arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        with ServerProcess(family, family.parent / "configured.log", *arguments) as process:
            yield Configured(process, collector)
            process.end()
            assert "Traceback" not in process.log.read_text()


@pytest.fixture(scope="session")
def oracle(family: Path) -> HFLoop:
    return HFLoop(family.parent, ["red", "blue"])


@pytest.fixture
def client(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture
def async_client(server: ServerProcess) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
