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
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from logit_fusion.cli import app
from server.config import load_config
from server.engine.checks import check_members
from server.engine.routing.router import Router, fingerprint
from server.engine.weights import AdapterTaskVector
from server.errors import ConfigError
from tests.models import make_adapter, make_family
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


def test_a_router_is_fitted_for_a_configuration_that_names_it_already(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "router"
    named = served(config, tmp_path, {"experts": ["red", "blue"]})
    said = run("fit", "--config", named, "--examples", written(tmp_path, 40), "--out", out)
    assert said.exit_code == 0, said.output
    check_members(load_config(named))


@pytest.mark.parametrize(
    ("out", "message"), [("nowhere/router", "lies in no folder that there is"), (".", "is a folder")]
)
def test_where_no_router_can_be_written(config: Path, tmp_path: Path, out: str, message: str) -> None:
    said = run("fit", "--config", config, "--examples", written(tmp_path, 40), "--out", tmp_path / out)
    assert isinstance(said.exception, ConfigError)
    assert message in str(said.exception)


def test_messages_that_the_template_refuses(config: Path, tmp_path: Path) -> None:
    large = shutil.copytree(config.parent / "large", tmp_path / "large")
    (large / "chat_template.jinja").write_text("{{ raise_exception('a system message is needed') }}")
    settings = yaml.safe_load(config.read_text())
    settings["large"]["model"] = str(large)
    strict = config.parent / "strict.yaml"
    strict.write_text(yaml.safe_dump(settings))
    said = run("fit", "--config", strict, "--examples", written(tmp_path, 40), "--out", tmp_path / "router")
    assert isinstance(said.exception, ConfigError)
    assert "the chat template refuses [{'role': 'user', 'content': '" in str(said.exception)
    assert str(said.exception).endswith("a system message is needed")


def test_another_weight_in_the_middle_is_another_base(config: Path, tmp_path: Path) -> None:
    shutil.copytree(config.parent / "base", tmp_path / "base")
    before = fingerprint(tmp_path / "base")
    (tmp_path / "base" / "left_over.bin").write_bytes(b"a trainer's")
    assert fingerprint(tmp_path / "base") == before
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(2)
    model.save_pretrained(tmp_path / "base")
    assert fingerprint(tmp_path / "base") != before


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


PARTS = ("red", "blue")


@pytest.fixture
def mixture(config: Path, tmp_path: Path) -> Path:
    """What experts have in common, and what each has beyond it."""
    out = tmp_path / "twin"
    experts = [f"{config.parent / name}=0.5" for name in PARTS]
    said = CliRunner().invoke(app, ["merge", str(out), *experts, "--base", str(config.parent / "base"), "--parts", "8"])
    assert said.exit_code == 0, said.output
    assert f"an expert: {{model: {out}, parts: {{red: {out / 'parts' / 'red'}" in said.output
    return out


def test_parts_are_what_experts_have_beyond_the_merge(config: Path, mixture: Path) -> None:
    """With all of its rank a part makes an expert's linear layers of the merge."""
    model, red = (AutoModelForCausalLM.from_pretrained(folder) for folder in (mixture, config.parent / "red"))
    name = "model.layers.0.self_attn.k_proj.weight"  # 32 x 64, of rank 32
    part, before, after = AdapterTaskVector(mixture / "parts" / "red"), model.state_dict()[name], red.state_dict()[name]
    delta = part.delta(name, before)
    assert delta is not None
    values = torch.linalg.svdvals(after - before)
    assert (after - before - delta).norm() == pytest.approx(float(values[8:].norm()), rel=1e-3)


def mixed(config: Path, mixture: Path, preset: dict[str, Any], **experts: Any) -> Path:
    """The configuration with a mixture, and a preset."""
    settings = yaml.safe_load(config.read_text())
    parts = {name: str(mixture / "parts" / name) for name in PARTS}
    settings["experts"] |= {"twin": {"model": str(mixture), "parts": parts}} | experts
    settings["presets"] = {"auto": preset}
    file = config.parent / "mixed.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_a_mixture_is_weighed_with_its_parts(config: Path, mixture: Path) -> None:
    report = check_members(load_config(mixed(config, mixture, {"experts": ["twin"]})))
    red, twin = (next(each for each in report.reports if each.member.name == name) for name in ("red", "twin"))
    layers = 2 * sum(8 * (a + b) for a, b in [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)])
    assert twin.parameters == red.parameters + 2 * layers
    assert twin.weight_bytes == red.weight_bytes + 2 * layers * 4


@pytest.mark.parametrize(
    ("preset", "experts", "message"),
    [
        ({"experts": ["twin", "red"], "route": "router"}, {}, "presets.auto.experts: 'red' stands in them twice"),
        ({"experts": ["twin"]}, {"again": {"use": "twin"}}, "experts.again.use: 'twin' is a mixture"),
        ({"experts": ["twin"]}, {"more": {"merge": {"twin": 1.0}}}, "experts.more.merge: 'twin' is a mixture"),
        ({"experts": ["twin"]}, {"more": {"model": "./red", "against": "twin"}}, "experts.more.against: 'twin' is"),
        ({"experts": ["twin"]}, {"bad": {"merge": {"red": 1.0}, "parts": {"a": "./red"}}}, "name it under model"),
        ({"experts": ["twin"]}, {"bad": {"model": "./red", "parts": {"a": "./red"}}}, "no adapter_config.json"),
        ({"experts": ["twin"], "route": "router"}, {}, "does not know expert 'blue'"),
    ],
)
def test_mixtures_that_cannot_be(
    config: Path, mixture: Path, router: Path, preset: dict[str, Any], experts: dict[str, Any], message: str
) -> None:
    if "route" in preset:
        preset = preset | {"route": str(router)}
    with pytest.raises(ConfigError) as caught:
        check_members(load_config(mixed(config, mixture, preset, **experts)))
    assert message in str(caught.value)


def test_parts_are_plain_lora(config: Path, mixture: Path) -> None:
    make_adapter(mixture / "parts" / "red", mixture, use_dora=True)
    with pytest.raises(ConfigError, match=r"experts.twin.parts.red: parts are plain LoRA"):
        check_members(load_config(mixed(config, mixture, {"experts": ["twin"]})))
