"""The fusion's metrics: right numbers, sound families, moving in a real Prometheus, and there for every panel."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, get_args

import httpx
import psutil
import pytest
import yaml
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from server.config import WeightingName
from server.metrics import READ_SECONDS
from tests.deploy.series import OF_PROMETHEUS, OF_ROLLOUT, OF_SPECULATION, expressions, names, variables
from tests.e2e.traffic import settle
from tests.server_process import ServerProcess

SECONDS = 30.0

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)"
)

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(server: ServerProcess) -> Series:
    """Every sample by its name and labels."""
    text = httpx.get(server.url + "/metrics", timeout=5).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float:
    return series.get((name, frozenset(labels.items())), 0.0)


class Growth:
    """What the series grew by since it was made."""

    def __init__(self, server: ServerProcess) -> None:
        self._server, self._before = server, settled(server)

    def __call__(self, name: str, **labels: str) -> float:
        return value(self._now, name, **labels) - value(self._before, name, **labels)

    def wait(self) -> None:
        self._now = settled(self._server)


def settled(server: ServerProcess) -> Series:
    """The series, with all that was generated before this call."""
    settle(server)
    return scrape(server)


def until(found: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (result := found()):
        assert time.monotonic() < deadline, f"{what} did not come within {SECONDS:g} s"
        time.sleep(0.2)
    return result


def complete(client: OpenAI, model: str, max_tokens: int, fusion: dict[str, Any] | None = None, **fields: Any) -> Any:
    extra = {"ignore_eos": True, **({} if fusion is None else {"fusion": fusion})}
    fields = {"temperature": 0, **fields}
    return client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=max_tokens, extra_body=extra, **fields
    )


def test_tokens_are_counted_by_preset_and_weighting(server: ServerProcess, client: OpenAI) -> None:
    grown = Growth(server)
    complete(client, "giant", 3)
    complete(client, "giant-red", 4, echo=True, logprobs=1)  # the prompt's logprobs are no tokens
    complete(client, "giant-red", 5, {"weighting": "none"})
    complete(client, "giant-blue", 6)
    complete(client, "giant-blue", 7, {"weighting": "alone"})
    complete(client, "giant-all", 4, n=2, temperature=1.0)
    list(complete(client, "giant-all", 9, {"weighting": "kl"}, stream=True))
    grown.wait()
    expected = {
        ("giant", "none"): 3,
        ("giant-red", "kl"): 4,
        ("giant-red", "none"): 5,
        ("giant-blue", "static"): 6,
        ("giant-blue", "alone"): 7,
        ("giant-all", "kl-grid"): 8,
        ("giant-all", "kl"): 9,
    }
    found = {key: grown("fusion_tokens_total", preset=key[0], weighting=key[1]) for key in expected}
    assert found == expected
    assert grown("fusion_alpha_count", preset="giant-red", expert="red") == 4
    assert grown("fusion_alpha_count", preset="giant-blue", expert="blue") == 6 + 7
    for expert in ("red", "blue"):
        assert grown("fusion_alpha_count", preset="giant-all", expert=expert) == 8 + 9
    assert grown("fusion_kl_count", preset="giant-blue", divergence="fused_large") == 6
    assert grown("fusion_kl_count", preset="giant-all", divergence="large_fused") == 8 + 9


def test_histograms_hold_what_the_trace_says(server: ServerProcess, client: OpenAI) -> None:
    grown = Growth(server)
    trace = complete(client, "giant-blue", 8, {"alpha": 0.6, "trace": True}).choices[0].fusion
    grown.wait()
    labels = {"preset": "giant-blue", "expert": "blue"}
    assert grown("fusion_alpha_bucket", **labels, le="0.5") == 0
    assert grown("fusion_alpha_bucket", **labels, le="0.75") == 8
    assert grown("fusion_alpha_bucket", **labels, le="+Inf") == 8
    assert grown("fusion_alpha_sum", **labels) == pytest.approx(8 * 0.6, abs=1e-4)
    for place, divergence in enumerate(("fused_large", "large_fused")):
        values = [pair[place] for pair in trace["kl_fused"]]
        labels = {"preset": "giant-blue", "divergence": divergence}
        assert grown("fusion_kl_sum", **labels) == pytest.approx(sum(values), abs=1e-3)
        for bound in ("0.1", "1.0", "10.0"):
            expected = sum(v <= float(bound) for v in values)
            assert grown("fusion_kl_bucket", **labels, le=bound) == expected


def test_clients_add_no_labels(server: ServerProcess, client: OpenAI) -> None:
    body: dict[str, Any] = {"model": "no-such-preset", "prompt": "a", "max_tokens": 1}
    assert httpx.post(server.url + "/v1/completions", json=body).status_code == 404
    body = {"model": "giant-red", "prompt": "a", "max_tokens": 1, "fusion": {"experts": ["no-such-expert"]}}
    assert httpx.post(server.url + "/v1/completions", json=body).status_code == 404
    allowed = {
        "preset": {"giant", "giant-red", "giant-blue", "giant-all"},
        "expert": {"red", "blue"},
        "member": {"base", "red", "blue"},
        "weighting": set(get_args(WeightingName)),
        "divergence": {"fused_large", "large_fused"},
        "client": {"anybody"},  # by the names of keys, where there are any
        "kind": {"prompt", "generated"},
    }
    for name, labels in settled(server):
        if name.startswith("fusion_") and not name.startswith("fusion_admission_"):
            for label, text in labels:
                assert label == "le" or text in allowed[label], (name, label, text)


def test_a_stuck_engine_does_not_hold_a_scrape_up(server: ServerProcess, client: OpenAI) -> None:
    processes = psutil.Process(server.process.pid).children(recursive=True)
    assert processes, "the engine runs in processes of its own"
    complete(client, "giant", 1)
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(READ_SECONDS + 0.5)  # a reading is under way now
        started = time.monotonic()
        assert ("fusion_tokens_total", frozenset({("preset", "giant"), ("weighting", "none")})) in scrape(server)
        assert time.monotonic() - started < 2
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
    grown = Growth(server)
    complete(client, "giant", 3)
    grown.wait()
    assert grown("fusion_tokens_total", preset="giant", weighting="none") == 3, "readings go on"


@needs_promtool
def test_promtool_finds_no_fault(server: ServerProcess, client: OpenAI) -> None:
    complete(client, "giant-all", 2)
    text = httpx.get(server.url + "/metrics").text
    ours = "".join(
        line + "\n"
        for line in text.splitlines()
        if line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith("fusion_")
    )
    assert "fusion_alpha_bucket" in ours
    done = subprocess.run(["promtool", "check", "metrics"], input=ours, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_series_of_dashboard_and_rules_is_there(server: ServerProcess, client: OpenAI) -> None:
    complete(client, "giant-all", 2)
    there = {name for name, _ in settled(server)} | OF_PROMETHEUS | OF_SPECULATION | OF_ROLLOUT
    asked = [(where, name) for where, expression in expressions() for name in names(expression)] + list(variables())
    missing = sorted({f"{name} ({where})" for where, name in asked if name not in there})
    assert not missing


@contextmanager
def prometheus(server: ServerProcess, folder: Path) -> Iterator[Callable[[str], list[Any]]]:
    """A real Prometheus that scrapes the server once a second; yields a function that asks it PromQL."""
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    job = {"job_name": "logit-fusion", "static_configs": [{"targets": [server.url.removeprefix("http://")]}]}
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}))
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    log = (folder / "prometheus.log").open("w")
    process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)

    def ask(expression: str) -> list[Any]:
        answer = httpx.get(f"http://{address}/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        result: list[Any] = answer["data"]["result"]
        return result

    def ready() -> bool:
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        try:
            return httpx.get(f"http://{address}/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(ready, "Prometheus")
        yield ask
    finally:
        process.terminate()
        process.wait(10)
        log.close()


@needs_prometheus
def test_a_real_prometheus_sees_the_series_move(server: ServerProcess, client: OpenAI, tmp_path: Path) -> None:
    def number(ask: Callable[[str], list[Any]], expression: str) -> float:
        return sum(float(entry["value"][1]) for entry in ask(expression))

    moving = [
        'fusion_tokens_total{preset="giant-red"}',
        'fusion_alpha_count{preset="giant-red", expert="red"}',
        'fusion_kl_bucket{preset="giant-red", divergence="fused_large", le="+Inf"}',
        "vllm:generation_tokens_total",
    ]
    with prometheus(server, tmp_path) as ask:
        until(lambda: ask('up{job="logit-fusion"} == 1') and ask("fusion_tokens_total"), "the first scrape")
        before = {series: number(ask, series) for series in moving}
        complete(client, "giant-red", 12)
        for series in moving:
            until(lambda series=series: number(ask, series) >= before[series] + 12, f"growth of {series}")  # type: ignore[misc]
        until(lambda: number(ask, 'rate(fusion_tokens_total{preset="giant-red"}[1m])') > 0, "a rate")
        for where, expression in expressions():
            ask(expression)  # fails where Prometheus cannot read it
            for name in names(expression) - OF_SPECULATION - OF_ROLLOUT:
                assert ask(f'count({{__name__="{name}"}})'), f"{where}: {name} is nowhere"
