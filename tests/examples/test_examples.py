"""Every example runs, as it stands, against the demo models."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server_process import ServerProcess

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(server: ServerProcess, *command: str | Path) -> str:
    # The environment's own scripts come first, as in a shell that activated it.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"LOGIT_FUSION_URL": server.url, "PATH": path, "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == {
        "README.md",
        "sdk.py",
        "async_stream_trace.py",
        "langchain_chat.py",
        "own_prompts.py",
        "recipes.py",
        "evaluation",
        "first_expert",
    }


def test_sdk(server: ServerProcess) -> None:
    lines = run(server, sys.executable, EXAMPLES / "sdk.py").splitlines()
    assert lines[0] == "Presets: giant, giant-math, giant-facts, giant-text, giant-all, giant-auto"
    answers = dict(line.strip().split(": ", 1) for line in lines[1:])
    assert set(answers) > {"the preset", "large alone", "proxy-tuning", "expert alone", "choice 0", "choice 1"}
    assert answers["the preset"] != answers["large alone"]
    assert answers["refused"] == "model: there is no preset 'gaint-text'; did you mean 'giant-text'?"


def test_async_stream_trace(server: ServerProcess) -> None:
    plain, fused = run(server, sys.executable, EXAMPLES / "async_stream_trace.py").split("kl:\n")
    assert plain.startswith("none:\n")
    movers = [{line.split()[-2] for line in text.splitlines() if not line.endswith(":")} for text in (plain, fused)]
    assert movers[0] == {"large"}
    assert movers[1] <= {"math", "facts", "text"}
    assert movers[1]


def test_langchain(server: ServerProcess) -> None:
    pytest.importorskip("langchain_openai")
    *answers, purchase = run(server, sys.executable, EXAMPLES / "langchain_chat.py").splitlines()
    assert answers == ["Answer: paper", "Answer: river"]
    assert purchase == "name='Liam' count=28 item='tickets' city='Sydney'"


def test_recipes(tmp_path: Path) -> None:
    with ServerProcess(ROOT / "zoo" / "recipes.yaml", tmp_path / "log") as server:
        lines = run(server, sys.executable, EXAMPLES / "recipes.py").splitlines()
    answers = dict(line.split(": ", 1) for line in lines)
    right = {name for name, answer in answers.items() if answer == "Answer: dress"}
    assert right == {"giant-dexperts", "giant-reward", "chat format"}
    assert answers.keys() - right == {"giant", "giant-contrast", "plain text"}


def test_evaluation(server: ServerProcess, tmp_path: Path) -> None:
    run(server, EXAMPLES / "evaluation" / "evaluate.sh", tmp_path / "results")
    table = (tmp_path / "results" / "results.md").read_text()
    for setting in ("large", "expert alone", "kl"):
        assert setting in table
