"""What clients and an orchestrator see when a process dies, and when the server is told to stop."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.traffic import Stream, begun, body, descendants, metric, standstill, streams, wait_for
from tests.server_process import ServerProcess

LONG_CONTEXT = ("--set", "engine.max_model_len=2048")
TWO_WORKERS = ("--set", "engine.tensor_parallel_size=2")


def status(server: ServerProcess, path: str) -> int | None:
    """The status of a path, `None` where nobody answers."""
    try:
        return httpx.get(server.url + path, timeout=2).status_code
    except httpx.TransportError:
        return None


def engine_core(server: ServerProcess) -> psutil.Process:
    (process,) = descendants(server, "EngineCore")
    return process


def worker(server: ServerProcess) -> psutil.Process:
    return descendants(server, "Worker")[0]


class TestDeadEngine:
    @pytest.mark.parametrize(
        ("victim", "options"), [(engine_core, ()), pytest.param(worker, TWO_WORKERS, marks=pytest.mark.long)]
    )
    def test_kill_9(
        self, family: Path, tmp_path: Path, victim: object, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if options:
            monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
        with ServerProcess(family, tmp_path / "log", *LONG_CONTEXT, *options) as server:
            with begun(server, 4) as running:
                assert (status(server, "/health"), status(server, "/ready")) == (200, 200)
                victim(server).kill()  # type: ignore[operator]
                assert wait_for(lambda: status(server, "/health") == 503) < 2.0
                assert status(server, "/ready") == 503
                response = httpx.post(server.url + "/v1/completions", json=body(3))
                assert response.status_code == 503
                assert response.json()["error"]["type"] == "ServiceUnavailableError"
                assert "the engine has died" in response.json()["error"]["message"]
                assert int(response.headers["retry-after"]) >= 1
                for stream in running:
                    stream.join(10)
                    assert stream.error is not None, stream.events[-2:]
                    assert stream.events[-1] == "[DONE]"
                    assert not stream.broken
            assert server.process.wait(60) == 1
            assert server.wait_until_gone() == []
        log = server.log.read_text()
        assert "error: the engine died; stopping" in log

    @pytest.mark.long
    def test_the_engine_goes_with_its_server(self, family: Path, tmp_path: Path) -> None:
        with ServerProcess(family, tmp_path / "log") as server:
            server.process.kill()
            server.process.wait()
            assert server.wait_until_gone() == []


class TestDrain:
    def test_not_one_token_is_lost(self, family: Path, tmp_path: Path) -> None:
        """64 streams run and one waits when the signal comes; the 64 end as they would have."""
        sizes = ("--set", "engine.max_num_seqs=64", "--set", "engine.max_model_len=512")
        with ServerProcess(family, tmp_path / "log", *sizes, "--drain-timeout", "120") as server:
            with standstill(server):
                running = [Stream(server, 300) for _ in range(64)]
                wait_for(lambda: metric(server.url, "fusion_admission_running") == 64)
                waiting = Stream(server, 3)
                wait_for(lambda: metric(server.url, "fusion_admission_queue_depth") == 1)
                server.process.send_signal(signal.SIGTERM)
                wait_for(lambda: status(server, "/ready") == 503, 2.0)
                assert status(server, "/health") == 200
                waiting.join(10)
                assert waiting.status == 503
                response = httpx.post(server.url + "/v1/completions", json=body(3))
            assert response.status_code == 503
            assert "shutting down" in response.json()["error"]["message"]
            assert int(response.headers["retry-after"]) >= 1
            assert response.headers["connection"] == "close"
            for stream in running:
                stream.join(120)
            assert [stream.error for stream in running] == [None] * 64
            assert [stream.completion_tokens for stream in running] == [300] * 64
            assert server.process.wait(60) == 0
            assert server.wait_until_gone() == []
        assert "Traceback" not in server.log.read_text()

    @pytest.mark.long
    def test_the_timeout_ends_what_takes_longer(self, family: Path, tmp_path: Path) -> None:
        options = ("--set", "engine.max_model_len=4096", "--set", "engine.max_num_seqs=64", "--drain-timeout", "0.5")
        with ServerProcess(family, tmp_path / "log", *options) as server, streams(server, 2, tokens=4000):
            started = time.monotonic()
            server.end()
            assert time.monotonic() - started < 30

    @pytest.mark.long
    def test_a_second_signal_does_not_wait(self, family: Path, tmp_path: Path) -> None:
        options = ("--set", "engine.max_model_len=4096", "--set", "engine.max_num_seqs=64", "--drain-timeout", "600")
        with ServerProcess(family, tmp_path / "log", *options) as server:
            with streams(server, 2, tokens=4000):
                server.process.send_signal(signal.SIGTERM)
                wait_for(lambda: status(server, "/ready") == 503, 2.0)
                server.process.send_signal(signal.SIGTERM)
                assert server.process.wait(5) == 128 + signal.SIGTERM
            assert server.wait_until_gone() == []


def test_no_keys_on_an_open_address_is_warned_of(family: Path, tmp_path: Path) -> None:
    server = ServerProcess(family, tmp_path / "log", "--host", "0.0.0.0")
    try:
        wait_for(lambda: "no API keys are configured" in server.log.read_text(), 60)
    finally:
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
