"""A real language model from a package, by the same server: what `make serve-real` does, on a free port."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from openai import OpenAI

from tests.examples.test_examples import EXAMPLES, run
from tests.server_process import ServerProcess
from zoo.smollm2 import gguf_file

CONFIG = Path(__file__).parents[2] / "zoo" / "smollm2.yaml"


@pytest.mark.long
def test_it_follows_what_it_is_told(tmp_path: Path) -> None:
    """`examples/own_prompts.py`, as it stands."""
    with ServerProcess(CONFIG, tmp_path / "log", environment={"SMOLLM2": str(gguf_file())}) as server:
        lines = run(server, sys.executable, EXAMPLES / "own_prompts.py").splitlines()
    assert [line.split(":")[0] for line in lines] == ["plain", "faithful", "plain", "guided", "plain", "negative"]
    said = [line.split(": ", 1)[1] for line in lines]
    assert "Lyon" in said[1]
    assert "cats" not in said[2]
    assert "cats" in said[3]
    assert said[4] != said[5]


@pytest.mark.long
def test_it_answers_in_english(tmp_path: Path) -> None:
    # A cache of its own: the file is converted on the first start, and found there on the second.
    environment = {"SMOLLM2": str(gguf_file()), "XDG_CACHE_HOME": str(tmp_path)}
    for attempt in ("first", "second"):
        with ServerProcess(CONFIG, tmp_path / attempt, environment=environment) as server:
            client = OpenAI(base_url=server.url + "/v1", api_key="none")
            answer = client.chat.completions.create(
                model="smollm2",
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                temperature=0,
                max_tokens=30,
            )
            assert "Paris" in (answer.choices[0].message.content or "")
            assert answer.choices[0].finish_reason == "stop"
            server.end()
    (kept,) = (tmp_path / "logit-fusion" / "gguf").iterdir()
    assert kept.name.startswith("SmolLM2")
