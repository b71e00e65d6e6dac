"""Starting and ending: one greeting, clean exits, no process left behind."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file

from tests.e2e.traffic import metric, streams, wait_for
from tests.models import make_family
from tests.server_process import ServerProcess

GREEDY = {"model": "giant", "prompt": "a", "max_tokens": 12, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def alone(family: Path) -> Iterator[ServerProcess]:
    """The large model without experts."""
    text = family.read_text()
    config = family.with_name("alone.yaml")
    engine = text[text.index("engine:") :]
    config.write_text("large: {model: ./large}\npresets: {giant: {weighting: none}}\n" + engine)
    options = ("--set", "engine.max_model_len=4096", "--drain-timeout", "0.5")
    with ServerProcess(config, family.parent / "alone.log", *options) as process:
        yield process


def test_the_greeting(server: ServerProcess) -> None:
    wait_for(lambda: "Stop: Ctrl-C" in server.log.read_text())
    log = server.log.read_text()
    assert f"logit-fusion serves giant, giant-red, giant-blue, giant-all at {server.url}" in log
    assert f"curl {server.url}/v1/chat/completions" in log
    assert "from openai import OpenAI" in log


def test_the_log_of_a_start_says_where_the_time_went(server: ServerProcess) -> None:
    wait_for(lambda: "Ready after" in server.log.read_text())
    start = server.log.read_text().partition("Ready after")[0]
    found = re.findall(r"^\d\d:\d\d:\d\d INFO ([a-z, ]+): \d+\.\d s(.*)$", start, re.MULTILINE)
    assert [phase for phase, _ in found][:7] == [
        "checking the models",
        "starting the engine",
        "building the members",
        *(f"loading {member}" for member in ("large", "base", "red", "blue")),
    ]
    assert found[-1] == ("checking that it fuses", "")
    assert re.fullmatch(r", KV cache of [1-9][0-9,]* tokens", found[-2][1])


def _other_sizes(red: Path) -> None:
    settings = red / "config.json"
    settings.write_text(settings.read_text().replace('"intermediate_size": 128', '"intermediate_size": 192'))


def _a_layer_less(red: Path) -> None:
    weights = load_file(red / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, red / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (_other_sizes, "RuntimeError: start (0) + length (192) exceeds dimension size (128)."),
        pytest.param(
            _a_layer_less,
            "ValueError: Following weights were not initialized from checkpoint: "
            "{'model.layers.1.mlp.down_proj.weight'}",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_start_that_fails_says_why(tmp_path: Path, spoil: Callable[[Path], None], cause: str) -> None:
    """The last line is the cause, not vLLM's sentence that there is one."""
    config = make_family(tmp_path)
    spoil(tmp_path / "red")
    command = [sys.executable, "-m", "server", "serve", "--config", str(config), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"error: the engine did not start (loading red): {cause}"


def test_a_large_model_alone(server: ServerProcess, alone: ServerProcess) -> None:
    """Without experts it is a plain server, and its tokens are counted all the same."""
    fused, plain = (httpx.post(each.url + "/v1/completions", json=GREEDY).json() for each in (server, alone))
    assert plain["choices"][0]["text"] == fused["choices"][0]["text"]
    wait_for(lambda: metric(alone.url, "fusion_tokens_total") == 12)
    refused = httpx.post(alone.url + "/v1/completions", json=GREEDY | {"fusion": {"weighting": "kl"}})
    assert refused.status_code == 400
    members = httpx.get(alone.url + "/v1/fusion/experts").json()["members"]
    assert [member["name"] for member in members] == ["large"]


def test_ctrl_c_ends_all_processes_and_what_takes_longer(alone: ServerProcess) -> None:
    """Last of those that use it, because it ends the server. SIGTERM ends those that all tests share."""
    with streams(alone, 2, tokens=4000, model="giant"):
        started = time.monotonic()
        alone.end(signal.SIGINT)
        assert time.monotonic() - started < 30


def test_a_signal_during_start_up_ends_all_processes(family: Path, tmp_path: Path) -> None:
    server = ServerProcess(family, tmp_path / "log")
    while len(server.processes()) < 2 and server.process.poll() is None:
        time.sleep(0.05)
    assert server.stop(signal.SIGTERM) != 0
    assert server.wait_until_gone() == []


@pytest.mark.parametrize("setting", ["--port", pytest.param("http.metrics_port", marks=pytest.mark.long)])
def test_a_taken_port_is_one_line(family: Path, setting: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = [setting, str(port)] if setting == "--port" else ["--port", "0", "--set", f"{setting}={port}"]
        result = subprocess.run(
            [sys.executable, "-m", "logit_fusion", "serve", "--config", str(family), *options],
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert f"choose another {setting}" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
