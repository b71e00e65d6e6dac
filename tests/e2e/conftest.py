"""Real servers over a tiny random family, shared by the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from openai import AsyncOpenAI, OpenAI
from playwright.sync_api import Browser, Page

from bench.turn import go_as_usual, go_first
from server.auth import METRICS_ENVIRONMENT
from server.launcher import free_port
from tests.e2e.chromium import Watch, open_browser
from tests.e2e.collector import Collector
from tests.e2e.playground_page import Open
from tests.hf_loop import HFLoop
from tests.models import make_family
from tests.server_process import ServerProcess, demo_server

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; of a module alone, since asynchronous tests cannot run beside it."""
    with open_browser() as chromium:
        yield chromium


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens the playground over the demo models; at the end no page may have complained, or asked anybody else."""
    server = demo_server()
    opened: list[tuple[Page, Watch]] = []

    def open_page(
        width: int = 1280, height: int = 900, prepare: Callable[[Page], None] | None = None, **options: Any
    ) -> Page:
        page = browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
        opened.append((page, Watch(page)))
        if prepare is not None:
            prepare(page)
        page.goto(server.url)
        # Not `wait_for_function`: what that evaluates again and again, the page's own policy forbids.
        for _ in range(3000):
            if page.evaluate("performance.getEntriesByName('interactive').length"):
                break
            page.wait_for_timeout(10)
        else:
            pytest.fail("the page is not there after 30 s")
        return page

    yield open_page
    for page, watch in opened:
        page.context.close()
        assert watch.complaints == []
        assert watch.strangers(server.url) == []
