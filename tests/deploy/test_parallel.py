"""The demo models over several processes answer as one process does: tensor parallel, and replicas side by side."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.config.load import zoo_config
from tests.e2e.traffic import metric, wait_for
from tests.server_process import ServerProcess

# Three starts of the server.
pytestmark = pytest.mark.long

TOKENS = 24
PROMPTS = (
    "Question: Tom has 3 apples and buys 5 more. How many apples does he have?\nAnswer:",
    "Question: What is the three-letter code of Canada?\nAnswer:",
    "The quick brown fox",
)
PRESETS = ("giant", "giant-math", "giant-facts", "giant-all")
SMALL = ("--set", "engine.kv_cache_memory_bytes=67108864", "--set", "engine.max_num_seqs=8")

Answers = dict[tuple[str, str], tuple[list[int], list[str]]]


def ask(url: str, preset: str, prompt: str) -> tuple[list[int], list[str]]:
    """Return the greedy tokens, and the experts that the trace names for each of them."""
    body: dict[str, Any] = {"model": preset, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body | {"fusion": {"trace": True}}, timeout=120)
    assert answer.status_code == 200, answer.text
    trace = answer.json()["choices"][0]["fusion"]
    assert all(len(alpha) == len(trace["token_ids"]) for alpha in trace["alpha"].values())
    return trace["token_ids"], sorted(trace["alpha"])


def ask_all(*urls: str) -> Answers:
    """Ask everything, each question of the next server in turn, as a Service spreads requests over its pods."""
    turn = itertools.cycle(urls)
    return {question: ask(next(turn), *question) for question in itertools.product(PRESETS, PROMPTS)}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(zoo_config(), tmp_path_factory.mktemp("one") / "log", *SMALL) as process:
        yield process


@pytest.fixture(scope="module")
def expected(one: ServerProcess) -> Answers:
    answers = ask_all(one.url)
    assert all(tokens for tokens, _ in answers.values())
    assert len({tuple(tokens) for tokens, _ in answers.values()}) > len(PROMPTS), "the presets differ"
    return answers


def test_two_replicas(expected: Answers, one: ServerProcess, tmp_path: Path) -> None:
    with ServerProcess(zoo_config(), tmp_path / "log", *SMALL) as two:
        assert ask_all(two.url, one.url) == expected


def test_tensor_parallel(expected: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One core for each of the two workers.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    with ServerProcess(zoo_config(), tmp_path / "log", *SMALL, "--set", "engine.tensor_parallel_size=2") as two:
        assert ask_all(two.url) == expected


def test_data_parallel(tmp_path: Path, expected: Answers) -> None:
    """Two engines in one server: the same answers, with the traces and the counts of both."""
    options = ("--set", "engine.data_parallel_size=2")
    with ServerProcess(zoo_config(), tmp_path / "log", *SMALL, *options) as server:
        assert ask_all(server.url) == expected
        text = "No trace for generated token"
        assert text not in server.log.read_text()
        generated = sum(len(tokens) for tokens, _ in expected.values())
        wait_for(lambda: metric(server.url, "fusion_tokens_total") == generated)
