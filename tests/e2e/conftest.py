"""Real servers over a tiny random family, shared by the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from openai import AsyncOpenAI, OpenAI

from bench.turn import go_as_usual, go_first
from server.auth import METRICS_ENVIRONMENT
from server.launcher import free_port
from tests.e2e.collector import Collector
from tests.hf_loop import HFLoop
from tests.models import make_family
from tests.server_process import ServerProcess

SPLIT = {"giant-red": 0.7, "giant-blue": 0.3}
ROLLOUT: dict[str, Any] = {
    "ab": {"split": SPLIT},
    "watched": {"shadow": {"answer": "giant-red", "beside": "giant-blue"}},
    "watched-seldom": {"shadow": {"answer": "giant-red", "beside": "giant-blue", "share": 1e-9}},
    "mirror": {"shadow": {"answer": "giant-all", "beside": "giant-all"}},
}
"""Presets of `configured` that try others out."""


@pytest.fixture(scope="package", autouse=True)
def _clients_go_first() -> Iterator[None]:
    go_first()
    yield
    go_as_usual()


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
    """A server, the collector that its spans go to, and where its metrics are."""

    server: ServerProcess
    collector: Collector
    metrics_url: str
    metrics_key: str


@pytest.fixture(scope="package")
def configured(family: Path) -> Iterator[Configured]:
    """With engine arguments: traces are exported, more sequences run at once, and grammars leave out white space, of
    which random models would write no end. As behind a proxy: under a path, with a name, with metrics aside. It keeps
    no responses. Some presets try others out.
    """
    metrics_port, metrics_key = free_port(), "of the metrics"
    # Spans are sent every 0.2 s, not every 5 s.
    environment = {METRICS_ENVIRONMENT: metrics_key, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    with Collector() as collector:
        settings = {
            "engine.otlp_traces_endpoint": collector.endpoint,
            "engine.structured_outputs_config": "{disable_any_whitespace: true}",
            "engine.max_num_seqs": 32,
            "http.root_path": "/fusion",
            "http.allowed_hosts": "[models.example.com]",
            "http.cors_origins": "[https://app.example.com]",
            "http.metrics_port": metrics_port,
            "limits.stored_responses": 0,
            **{f"presets.{name}": json.dumps(preset) for name, preset in ROLLOUT.items()},
        }
        arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        log = family.parent / "configured.log"
        with ServerProcess(family, log, *arguments, environment=environment) as process:
            yield Configured(process, collector, f"http://127.0.0.1:{metrics_port}/metrics", metrics_key)
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
