"""The command against real servers over a tiny random family: every answer is the one computed offline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from tests.evaluation.suites import write_rows, write_suite
from tests.hf_loop import HFLoop, Settings
from tests.models import make_family
from tests.server.family import edit
from tests.server_process import ServerProcess

KEY = "a-key-for-the-tests"
MAX_TOKENS = 5
SHOTS = 2
QUESTIONS = ["Tom has 3 apples", "Name a river", "The next word", "What is red?"]
CHOICES = ["to the east", "not at all", "in the end, one"]
# The reference searches the paper's grid in no time, and solves `kl` in seconds a token.
SETTINGS = {
    "large": {"weighting": "none"},
    "expert alone": {"weighting": "alone"},
    "static": {"weighting": "static", "alpha": 1.0},
    "kl-grid": {"weighting": "kl-grid"},
}
KL_GRID = Settings("kl-grid", ("red",))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its large model comes with sampling settings of its own, of which the evaluation must know nothing."""
    config = make_family(tmp_path_factory.mktemp("family"))
    own = {"do_sample": True, "temperature": 0.7, "top_k": 2, "repetition_penalty": 1.8}
    edit(config.parent / "large" / "generation_config.json", **own)
    return config


@pytest.fixture(scope="module")
def oracle(family: Path) -> HFLoop:
    return HFLoop(family.parent, ["red", "blue"])


@pytest.fixture(scope="module")
def suite(family: Path, oracle: HFLoop) -> Path:
    """Every metric, in plain text and as chat; half of the right answers are what `kl-grid` says."""
    folder = family.parent / "suite"
    folder.mkdir()
    rows: list[dict[str, Any]] = []
    for number, question in enumerate(QUESTIONS):
        said = answer_of(oracle, chat_prompt(oracle, question), KL_GRID) if number % 2 else "nothing of the kind"
        rows.append({"q": question, "a": said, "options": CHOICES, "right": number % 3})
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "train.jsonl", [{"q": f"Count {n}", "a": f"{n} and {n + 1}"} for n in range(SHOTS)])
    task = {"data": "rows.jsonl", "prompt": "{q}", "answer": "{a}", "train": "train.jsonl"}
    config = yaml.safe_load(family.read_text())
    upper = {"large": {"model": "../large"}, "base": {"model": "../base"}, "experts": {"red": {"model": "../red"}}}
    upper |= {"presets": {"tuned": {"experts": ["red"], "weighting": "alone"}}, "engine": config["engine"]}
    (folder / "upper.yaml").write_text(yaml.safe_dump(upper))
    tasks = {
        "talk": {**task, "metric": "exact", "chat": True, "max_tokens": MAX_TOKENS, "expert": "red", "upper": "tuned"},
        "write": {**task, "metric": "exact", "max_tokens": MAX_TOKENS, "expert": "blue"},
        "likely": {**task, "metric": "nll", "chat": True, "answer": "{q}, then", "expert": "red", "upper": "tuned"},
        "pick": {**task, "metric": "choice", "choices": "options", "answer": "{right}"},
    }
    tables = {
        "Single task": {},
        "All at once": {"experts": "all", "settings": ["large", "kl-grid"]},
        "Few shots": {"shots": SHOTS, "tasks": ["talk", "write"], "settings": ["static"]},
    }
    path = folder / "suite.yaml"
    sections = {"tasks": tasks, "settings": SETTINGS, "tables": tables}
    path.write_text(yaml.safe_dump({"config": "../fusion.yaml", "upper": "upper.yaml", **sections}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def server(family: Path) -> Iterator[ServerProcess]:
    """A server that asks for a key."""
    environment = os.environ | {"LOGIT_FUSION_API_KEY": KEY}
    with ServerProcess(family, family.parent / "server.log", environment=environment) as process:
        yield process


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "logit_fusion", "eval", *map(str, arguments)]


def evaluate(*arguments: str | Path, code: int = 0) -> str:
    """Run the command to its end and return what it said on standard error."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stderr


def records_in(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def tables_in(out: Path) -> str:
    """The tables without their tokens per second."""
    text = (out / "results.md").read_text()
    return "\n".join(part.partition("Tokens per second")[0] for part in text.split("\n## "))


def test_scores_are_those_computed_offline(suite: Path, oracle: HFLoop, tmp_path: Path) -> None:
    """With servers that the command starts: the fused models', then the fine-tuned one's."""
    evaluate("--suite", suite, "--out", tmp_path)
    rows = [json.loads(line) for line in (suite.parent / "rows.jsonl").read_text().splitlines()]
    tasks = yaml.safe_load(suite.read_text())["tasks"]
    records = records_in(tmp_path)
    for record in records:
        row, task = rows[record["example"]], tasks[record["task"]]
        settings = settings_of(record)
        if task["metric"] == "exact":
            prompt = chat_prompt(oracle, row["q"], record["shots"]) if task.get("chat") else None
            prompt = prompt or text_prompt(oracle, row["q"], record["shots"])
            said = answer_of(oracle, prompt, settings)
            assert record["output"] == said, record
            assert record["value"] == float(said.strip() == row["a"].strip()), record
        elif task["metric"] == "nll":
            whole = chat_prompt(oracle, row["q"], answer=f"{row['q']}, then")
            total, count = log_likelihood(oracle, chat_prompt(oracle, row["q"]), whole, settings)
            assert record["value"] == pytest.approx(-total, abs=1e-3)
            assert record["weight"] == count
        else:
            prompt = text_prompt(oracle, row["q"])
            texts = [text_prompt(oracle, f"{row['q']} {choice}") for choice in CHOICES]
            totals = [log_likelihood(oracle, prompt, ids, settings)[0] for ids in texts]
            assert record["output"] == pytest.approx(totals, abs=1e-3)
            assert record["value"] == float(totals.index(max(totals)) == row["right"])
    for log in ("server.log", "upper.log"):
        said = (tmp_path / log).read_text()
        assert "from the large model's generation_config.json: repetition_penalty 1.8, temperature 0.7, top_k 2" in said
    assert "repetition_penalty 1, presence_penalty 0" in (tmp_path / "results.md").read_text()
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["decoding"]["repetition_penalty"] == 1.0
    talk = saved["tables"][0]["rows"][0]
    for column, asked in (("large", {"weighting": "none"}), ("kl-grid", KL_GRID.field())):
        values = [
            r["value"] for r in records if r["task"] == "talk" and not r["shots"] and same(r.get("fusion"), asked)
        ]
        assert talk["scores"][column]["value"] == pytest.approx(100 * sum(values) / len(QUESTIONS))
    assert talk["scores"]["kl-grid"]["value"] >= 50.0
    assert "fine-tuned" in talk["scores"]
    kinds = {(r["task"], r["shots"], (r.get("fusion") or {}).get("weighting", r.get("upper"))) for r in records}
    assert {("pick", 0, "kl-grid"), ("likely", 0, "tuned"), ("write", SHOTS, "static"), ("talk", 0, "alone")} <= kinds
    assert (tmp_path / "single-task-scores.png").is_file()
    assert (tmp_path / "all-at-once-alpha-talk.png").is_file()


def test_a_killed_run_goes_on_and_numbers_come_out_the_same(suite: Path, server: ServerProcess, tmp_path: Path) -> None:
    asking = ("--suite", suite, "--url", server.url, "--key", KEY)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    evaluate(*asking, "--out", whole)
    total = len(records_in(whole))

    process = subprocess.Popen(command(*asking, "--out", killed, "--concurrency", "1"), stderr=subprocess.DEVNULL)
    store = killed / "records.jsonl"
    while not store.is_file() or store.read_text().count("\n") < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = store.read_text()
    assert 5 <= left.count("\n") < total

    evaluate(*asking, "--out", killed)
    assert store.read_text().startswith(left[: left.rfind("\n") + 1])
    assert len(records_in(killed)) == total
    assert tables_in(killed) == tables_in(whole)

    first = {record["key"]: record for record in records_in(whole)}
    for record in records_in(killed):
        assert record["value"] == pytest.approx(first[record["key"]]["value"], abs=1e-3)
        if isinstance(record["output"], str):
            assert record["output"] == first[record["key"]]["output"]


def is_server(process: psutil.Process) -> bool:
    """Whether it serves; one that has ended since it was found does not."""
    try:
        return "serve" in process.cmdline()
    except psutil.Error:
        return False


def test_a_started_server_does_not_outlive_the_run(suite: Path, tmp_path: Path) -> None:
    run = subprocess.Popen(command("--suite", suite, "--out", tmp_path), stderr=subprocess.DEVNULL)
    while not (children := [child for child in psutil.Process(run.pid).children() if is_server(child)]):
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_faults_are_one_line_and_an_exit_code(suite: Path, server: ServerProcess, tmp_path: Path) -> None:
    there = ("--url", server.url, "--key", KEY)
    task = {"metric": "exact", "data": "rows.jsonl", "prompt": "{question}", "answer": "{answer}"}
    unknown = write_suite(tmp_path, {"tasks": {"quiz": {**task, "expert": "bleu"}}})
    (tmp_path / "long").mkdir()
    row = {"question": "very " * 300, "answer": "long"}
    too_long = write_suite(tmp_path / "long", {"tasks": {"quiz": {**task, "expert": "blue"}}}, [row])
    cases: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (2, "there is no such", ("--suite", tmp_path / "none.yaml")),
        (2, "has no expert 'bleu'; did you mean 'blue'?", ("--suite", unknown, *there)),
        (2, "give one of them", ("--suite", suite, "--config", "x.yaml", *there)),
        (1, "quiz, large, example 1: ", ("--suite", too_long, *there)),
        (1, "asks for an API key that it knows", ("--suite", suite, "--url", server.url)),
        (1, "no server answers at", ("--suite", suite, "--url", "http://127.0.0.1:9")),
    ]
    for code, message, arguments in cases:
        said = evaluate(*arguments, "--out", tmp_path / "out", code=code)
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert message in line


def settings_of(record: dict[str, Any]) -> Settings:
    """What a record's answer was asked of."""
    if "upper" in record:
        return Settings("alone", ("red",))
    fusion = record["fusion"]
    experts = tuple(fusion.get("experts", ()))
    alpha = (fusion["alpha"],) * len(experts) if "alpha" in fusion else ()
    return Settings(fusion["weighting"], experts, alpha)


def same(fusion: dict[str, Any] | None, asked: dict[str, Any]) -> bool:
    keys = ("weighting", "experts")
    return fusion is not None and all(fusion.get(key) == asked.get(key) for key in keys)


def chat_prompt(oracle: HFLoop, question: str, shots: int = 0, answer: str | None = None) -> list[int]:
    turns = []
    for number in range(shots):
        turns += [{"role": "user", "content": f"Count {number}"}]
        turns += [{"role": "assistant", "content": f"{number} and {number + 1}"}]
    turns += [{"role": "user", "content": question}]
    if answer is not None:
        turns += [{"role": "assistant", "content": answer}]
    text = oracle.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)
    ids: list[int] = oracle.tokenizer(text, add_special_tokens=False).input_ids
    return ids


def text_prompt(oracle: HFLoop, question: str, shots: int = 0) -> list[int]:
    blocks = [f"Count {number} {number} and {number + 1}" for number in range(shots)]
    ids: list[int] = oracle.tokenizer("\n\n".join([*blocks, question])).input_ids
    return ids


def answer_of(oracle: HFLoop, prompt: list[int], settings: Settings) -> str:
    """The greedy answer as a server says it, which holds a character back whose last bytes never came."""
    token_ids, _ = oracle.greedy(prompt, settings, MAX_TOKENS)
    end = oracle.tokenizer.eos_token_id
    token_ids = token_ids[: token_ids.index(end)] if end in token_ids else token_ids
    text: str = oracle.tokenizer.decode(token_ids, skip_special_tokens=True)
    return text.rstrip("\ufffd")


def log_likelihood(oracle: HFLoop, prompt: list[int], whole: list[int], settings: Settings) -> tuple[float, int]:
    """Of what follows the beginning that both have, and how many tokens that is."""
    start = next(i for i, (a, b) in enumerate(zip([*prompt, None], whole, strict=False)) if a != b)
    answer = whole[start:]
    logprobs = oracle.along(whole[:start], answer, settings).logits.log_softmax(-1)
    return float(logprobs[torch.arange(len(answer)), torch.tensor(answer)].sum()), len(answer)
