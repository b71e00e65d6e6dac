"""From lines of JSON to an expert that a configuration names, as a user goes: the command line, in a clean folder."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from server.config import load_config
from server.engine.checks import check_members
from server.errors import ConfigError
from training.cli import app

EXAMPLE = Path(__file__).parents[2] / "examples" / "first_expert"
SHIPPING = EXAMPLE / "shipping.jsonl"
QUICK = ("--epochs", "2", "--rank", "8", "--batch-size", "32")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "logit_fusion", "expert", "train", *map(str, arguments)]


def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def here(*arguments: str | Path) -> Result:
    """In this process, which has loaded the libraries already."""
    try:
        return CliRunner().invoke(app, ["train", *map(str, arguments)])
    finally:
        logging.disable(logging.NOTSET)


def score_in(folder: Path) -> dict[str, Any]:
    score: dict[str, Any] = json.loads((folder / "training.json").read_text())["score"]
    return score


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.long)])
def test_an_expert_that_a_server_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    options = ["--full"] if full else []
    done = run(tmp_path, SHIPPING, "--name", "shipping", "--write", "fusion.yaml", *QUICK, *options)
    folder = tmp_path / "experts" / "shipping"
    score = score_in(folder)
    # Two rounds teach the form of the answers, not more.
    assert score["best"]["expert"] < score["first"]["expert"] - 0.3
    assert score["best"]["fused"] < score["best"]["large"] - 0.3
    assert f"fused by kl {score['best']['fused']:.3f}" in done.stdout
    assert "step" in done.stderr
    assert not (folder / "checkpoints").exists()
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"].endswith("zoo/models/base")

    config = load_config(tmp_path / "fusion.yaml")
    report = check_members(config)
    member = next(m for m in report.members.experts if m.name == "shipping")
    assert member.kind == ("model" if full else "adapter")
    assert config.presets["shipping"].experts == ("shipping",)
    held_out = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    trained = {json.loads(line)["messages"][0]["content"] for line in SHIPPING.read_text().splitlines()}
    asked = {row["messages"][0]["content"] for row in held_out}
    assert len(asked) == 48
    assert asked < trained

    monkeypatch.chdir(tmp_path)
    again = here(SHIPPING, "--name", "shipping", "--write", "fusion.yaml", *QUICK, *options)
    assert again.exception is None
    assert "has this expert already" in again.output
    refused = here(SHIPPING, "--name", "shipping", "--epochs", "3", *options)
    assert "--fresh begins anew" in str(refused.exception)


@pytest.mark.long
def test_from_data_to_a_better_answer(tmp_path: Path) -> None:
    """The story of docs/first-expert.md: the recommended preset is ahead of the large model by more than chance."""
    run(tmp_path, SHIPPING, "--name", "shipping", "--write", "fusion.yaml")
    evaluate = [sys.executable, "-m", "logit_fusion", "eval", "--config", "fusion.yaml", "--expert", "shipping"]
    subprocess.run(evaluate, cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "eval-results" / "results.md").read_text()
    assert "Serve the preset {experts: [shipping], weighting: " in text
    table = json.loads((tmp_path / "eval-results" / "results.json").read_text())["tables"][0]
    lead = table["rows"][0]["differences"]["kl - large"]
    assert lead["low"] > 0


@pytest.mark.long
def test_a_killed_training_goes_on(tmp_path: Path) -> None:
    """And ends with the weights of one that was left alone."""
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    options = ("--epochs", "3", "--rank", "8", "--batch-size", "32", "--hold-weight", "0")
    run(tmp_path, SHIPPING, "--name", "shipping", "--out", undisturbed, *options)
    process = subprocess.Popen(
        command(SHIPPING, "--name", "shipping", "--out", killed, *options), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step"):
            break
    deadline = time.monotonic() + 60
    while not any((killed / "checkpoints").glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert (killed / "checkpoints").is_dir()
    run(tmp_path, SHIPPING, "--name", "shipping", "--out", killed, *options)
    assert score_in(killed)["best"] == pytest.approx(score_in(undisturbed)["best"], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["absent.jsonl", "--name", "x"], "absent.jsonl: cannot be read: No such file or directory"),
        ([SHIPPING, "--name", "no spaces"], "--name: 'no spaces' is not an expert name"),
        ([SHIPPING, "--name", "base"], "--name: an expert cannot be called 'base'"),
        ([SHIPPING, "--name", "x", "--out", EXAMPLE], f"{EXAMPLE}: the folder holds other things"),
        (["long.jsonl", "--name", "x"], "long.jsonl:9: prompt and answer have"),
    ],
)
def test_faults_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str | Path], fault: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"word {number}", "completion": "word"} for number in range(20)]
    rows[8]["completion"] = "word " * 2000
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = here(*options).exception
    assert isinstance(error, ConfigError)
    assert fault in str(error)
    assert not (tmp_path / "experts").exists()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.cli.NEEDED", ("a_trainer_that_nobody_has",))
    error = here(SHIPPING, "--name", "x").exception
    assert isinstance(error, ConfigError)
    assert "a_trainer_that_nobody_has, which is not installed here: make setup-train" in str(error)
