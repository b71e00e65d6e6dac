"""`logit-fusion route`: routers fitted to examples, judged, and refused where they would choose by chance."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from logit_fusion.cli import app
from server.config import load_config
from server.engine.checks import check_members
from server.engine.routing.router import Router, fingerprint
from server.errors import ConfigError
from tests.models import make_family
from training.routing import fit, judge

WORDS = {
    "red": ["tree", "river", "stone", "quiet"],
    "blue": ["lamp", "seven", "paper", "north"],
    "none": ["a", "b", "c", "d"],
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("family"))


def written(folder: Path, number: int, names: Sequence[str] = tuple(WORDS), **more: Any) -> Path:
    """Examples whose kinds end in other words."""
    rng = random.Random(number)
    lines = []
    for name in names:
        for _ in range(number):
            lines.append({"prompt": " ".join(rng.choices(WORDS[name], k=6)), "expert": name} | more)
    file = folder / "examples.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return file


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["route", *map(str, arguments)])


def test_fit_and_show(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "router.safetensors"
    said = run("fit", "--config", config, "--examples", written(tmp_path, 40), "--out", out)
    assert said.exit_code == 0, said.output
    assert f"{out}: in a preset: {{experts: [blue, red], route: {out}}}" in said.output
    router = Router.load(out)
    assert router.classes == ("blue", "none", "red")
    assert router.threshold == 0.7
    assert router.base == fingerprint(config.parent / "base")
    said = run("show", out, "--config", config, "--examples", written(tmp_path, 30))
    assert said.exit_code == 0, said.output
    (everything,) = (line.split() for line in said.output.splitlines() if line.strip().startswith("all"))
    assert everything[1] == "90"
    assert float(everything[2].rstrip("%")) > 80
    assert "Below 0.7 the large model answers alone." in said.output


def test_what_is_judged() -> None:
    router = Router(5 * torch.eye(3), torch.zeros(3), ("blue", "none", "red"), 0.7, "")
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 2, 1, 1]]
    shares = judge(router, vectors, ["blue", "red", "red", "none", "blue"])
    assert [(share.name, share.number, share.right) for share in shares] == [
        ("blue", 2, 1),
        ("none", 1, 1),
        ("red", 2, 1),
        ("all", 5, 3),
    ]
    assert shares[0].taken_for == {"none": 1}
    assert shares[-1].low < 0.6 < shares[-1].high


def test_two_kinds_are_two_classes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(40, 6)).astype(np.float32)
    vectors[20:] += 3
    router = fit(tmp_path, vectors, ["red"] * 20 + ["none"] * 20, None)
    assert router.classes == ("none", "red")
    assert judge(router, vectors, ["red"] * 20 + ["none"] * 20)[-1].right >= 38


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "a", "expert": "redd"}, "examples.jsonl:2: there is no expert 'redd'; did you mean 'red'?"),
        ({"prompt": "a"}, "examples.jsonl:2: expert: Field required"),
        ({"expert": "red"}, "examples.jsonl:2: Value error, exactly one of prompt and messages is needed"),
        ({"prompt": "a", "expert": "red", "task": 1}, "examples.jsonl:2: task: Extra inputs are not permitted"),
        ("text", "examples.jsonl:2: not JSON"),
    ],
)
def test_lines_that_are_no_examples(config: Path, tmp_path: Path, line: Any, message: str) -> None:
    file = tmp_path / "examples.jsonl"
    second = line if isinstance(line, str) else json.dumps(line)
    file.write_text(json.dumps({"prompt": "a", "expert": "red"}) + "\n" + second + "\n")
    said = run("fit", "--config", config, "--examples", file, "--out", tmp_path / "router")
    assert isinstance(said.exception, ConfigError)
    assert message in str(said.exception)
    assert not (tmp_path / "router").exists()


def test_one_kind_alone_is_refused(config: Path, tmp_path: Path) -> None:
    said = run("fit", "--config", config, "--examples", written(tmp_path, 20, ["red"]), "--out", tmp_path / "router")
    assert "all examples are for red: a router needs two kinds at least" in str(said.exception)


def test_few_examples_are_refused(config: Path, tmp_path: Path) -> None:
    said = run("fit", "--config", config, "--examples", written(tmp_path, 7), "--out", tmp_path / "router")
    assert "examples to learn from; 8 at least are needed" in str(said.exception)


def served(config: Path, folder: Path, preset: dict[str, Any]) -> Path:
    """The configuration with a preset that routes."""
    settings = yaml.safe_load(config.read_text())
    settings["presets"] = {"auto": {"route": str(folder / "router"), **preset}}
    file = config.parent / "auto.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture
def router(config: Path, tmp_path: Path) -> Path:
    file = tmp_path / "router"
    width = json.loads((config.parent / "base" / "config.json").read_text())["hidden_size"]
    base = fingerprint(config.parent / "base")
    Router(torch.zeros(2, width), torch.zeros(2), ("none", "red"), 0.5, base).save(file)
    return file


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ({"experts": ["red"], "weighting": "none"}, "presets.auto.route: a router chooses among the preset's experts"),
        ({"experts": []}, "presets.auto.route: a router chooses among the preset's experts"),
        ({"experts": ["red"], "weighting": "alone", "top": 2}, "presets.auto.top: weighting 'alone' takes one expert"),
        ({"experts": ["red"], "top": 0}, "presets.auto.top"),
        ({"experts": ["red"], "route": None, "top": 2}, "presets.auto.top: it is how many experts a router may choose"),
        ({"experts": ["red"], "prompts": {"red": {"with": {}}}}, "presets.auto.prompts: the experts that a router"),
        ({"experts": ["red"], "route": "nowhere"}, "`logit-fusion route fit` writes one"),
    ],
)
def test_presets_that_cannot_route(
    config: Path, tmp_path: Path, router: Path, preset: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(served(config, tmp_path, preset))
    assert message in str(caught.value)


def test_a_router_for_other_members_is_refused(config: Path, tmp_path: Path, router: Path) -> None:
    check_members(load_config(served(config, tmp_path, {"experts": ["red"]})))
    with pytest.raises(ConfigError, match="does not know expert 'blue'"):
        check_members(load_config(served(config, tmp_path, {"experts": ["red", "blue"]})))
    other = Router.load(router)
    Router(other.weight, other.bias, other.classes, 0.5, "another").save(router)
    with pytest.raises(ConfigError, match="was fitted for another base than"):
        check_members(load_config(served(config, tmp_path, {"experts": ["red"]})))
    shutil.copy(config.parent / "base" / "config.json", router)
    with pytest.raises(ConfigError, match="is no router"):
        check_members(load_config(served(config, tmp_path, {"experts": ["red"]})))
