"""Starting and ending: one greeting, clean exits, no process left behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.e2e.traffic import metric, wait_for
from tests.server_process import ServerProcess

GREEDY = {"model": "giant", "prompt": "a", "max_tokens": 12, "temperature": 0, "ignore_eos": True}


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes(family: Path, tmp_path: Path, sig: signal.Signals) -> None:
    with ServerProcess(family, tmp_path / "log") as server:
        answer = httpx.post(server.url + "/v1/completions", json={"model": "giant-red", "prompt": "a", "max_tokens": 3})
        assert answer.status_code == 200
        assert len(server.processes()) > 1, "the engine runs in processes of its own"
        assert server.stop(sig) == 0
        assert server.wait_until_gone() == []
    log = server.log.read_text()
    assert f"logit-fusion serves giant, giant-red, giant-blue, giant-all at {server.url}" in log
    assert f"curl {server.url}/v1/chat/completions" in log
    assert "from openai import OpenAI" in log
    assert "Traceback" not in log


def test_a_large_model_alone(family: Path, tmp_path: Path) -> None:
    """Without experts it is a plain server, and its tokens are counted all the same."""
    text = family.read_text()
    alone = family.parent / "alone.yaml"
    engine = text[text.index("engine:") :]
    alone.write_text("large: {model: ./large}\npresets: {giant: {weighting: none}}\n" + engine)
    with ServerProcess(family, tmp_path / "log") as server:
        fused = httpx.post(server.url + "/v1/completions", json=GREEDY).json()
    with ServerProcess(alone, tmp_path / "alone") as server:
        plain = httpx.post(server.url + "/v1/completions", json=GREEDY).json()
        assert plain["choices"][0]["text"] == fused["choices"][0]["text"]
        wait_for(lambda: metric(server.url, "fusion_tokens_total") == 12)
        refused = httpx.post(server.url + "/v1/completions", json=GREEDY | {"fusion": {"weighting": "kl"}})
        assert refused.status_code == 400
        members = httpx.get(server.url + "/v1/fusion/experts").json()["members"]
        assert [member["name"] for member in members] == ["large"]


def test_a_signal_during_start_up_ends_all_processes(family: Path, tmp_path: Path) -> None:
    server = ServerProcess(family, tmp_path / "log")
    while len(server.processes()) < 2 and server.process.poll() is None:
        time.sleep(0.05)
    assert server.stop(signal.SIGTERM) != 0
    assert server.wait_until_gone() == []


def test_a_taken_port_is_one_line(family: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = subprocess.run(
            [sys.executable, "-m", "server", "serve", "--config", str(family), "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
