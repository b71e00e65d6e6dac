"""docs/deploy.md is honest: what its commands name exists, and each block of them was run, or says that it was not."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.core import TyperGroup

from logit_fusion.cli import app
from server.config.schema import Config
from tests.deploy.chart import CASES, CHART, ROOT, Object, Release, render, rendered_cases

GUIDE = (ROOT / "docs/deploy.md").read_text()
NOT_TRIED = re.compile(r"\*[^*]*not tried[^*]*\*")
# As root, and for minutes: by hand before a release.
BY_HAND = {"make image", "make image-smoke", "make image-clean"}


@dataclass(frozen=True)
class Block:
    """Commands, and the paragraph that leads to them."""

    before: str
    text: str


BLOCKS = [Block(*found) for found in re.findall(r"((?:^.+\n)+)\n```bash\n((?:(?!```).*\n)*)```", GUIDE, re.MULTILINE)]
COMMANDS = "\n".join(block.text for block in BLOCKS).replace("\\\n", " ")
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", GUIDE, flags=re.DOTALL))
CODE = COMMANDS + "\n" + "\n".join(SPANS)


def block_with(words: str) -> str:
    (found,) = (block.text for block in BLOCKS if words in block.text)
    return found


def merged(values: Object, more: Object) -> Object:
    """What Helm makes of two values files: maps are merged, everything else is replaced."""
    both = values | more
    for key in values.keys() & more.keys():
        if isinstance(values[key], dict) and isinstance(more[key], dict):
            both[key] = merged(values[key], more[key])
    return both


def find(tree: Any, key: str) -> Iterator[Any]:
    """Every value of a key, at any depth."""
    if isinstance(tree, dict):
        yield from (value for name, value in tree.items() if name == key)
        tree = list(tree.values())
    if isinstance(tree, list):
        for entry in tree:
            yield from find(entry, key)


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Object:
    """The values file that the step with the API key writes; kubectl is replaced by something that does nothing."""
    folder = tmp_path_factory.mktemp("keys")
    stub = folder / "bin/kubectl"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\n")
    stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-e", "-c", block_with("sha256sum")], cwd=folder, env=environment, check=True)
    written: Object = yaml.safe_load((folder / "keys.yaml").read_text())
    return written


@pytest.fixture(scope="module")
def releases(keys_file: Object) -> dict[str, Release]:
    """What the guide installs, by the release's name; all are rendered as `demo`."""
    gpu = yaml.safe_load((CHART / "values-gpu.yaml").read_text())
    return {"demo": rendered_cases()["default"], "llama": render(merged(gpu, keys_file))}


def test_every_block_was_run_or_says_that_it_was_not() -> None:
    assert len(BLOCKS) == len(re.findall("^```bash$", GUIDE, re.MULTILINE)), "a block has no paragraph before it"
    run_here = {block_with("sha256sum"), block_with("check --config")}
    for block in BLOCKS:
        if not NOT_TRIED.search(block.before):
            assert block.text in run_here or set(block.text.splitlines()) == BY_HAND, block.text


def test_the_check_runs(tmp_path: Path) -> None:
    zoo = (ROOT / "zoo/zoo.yaml").read_text()
    (tmp_path / "fusion.yaml").write_text(zoo.replace(" models/", f" {ROOT}/zoo/models/"))
    command = block_with("check --config").split()
    assert command.pop(0) == ".venv/bin/logit-fusion"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", "logit_fusion", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_configuration_that_it_points_to_is_valid() -> None:
    values = yaml.safe_load((CHART / "values-gpu.yaml").read_text())
    # The folders, which are not here, as ids on the hub.
    Config.model_validate(yaml.safe_load(values["config"].replace("/models/", "reader/")))


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"^make(?: --directory \S+)? ([a-z-]+)", CODE, re.MULTILINE))
    assert {"image", "setup", "sbom", "audit"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_files_exist() -> None:
    # A folder's name and a slash: helm/values.yaml, but also /opt/logit-fusion/deploy/...
    named = re.findall(r"(?:^|[\s/=])((?:deploy|docs|helm|requirements|tests|\.github|\.ci)/[\w./*-]+)", CODE)
    assert {"helm/values-gpu.yaml", "deploy/compose.gpu.yaml"} <= set(named)
    for path in named:
        assert list(ROOT.glob(path)), path


def test_values_exist() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    set_here = set(re.findall(r"--set(?:-file)? ([\w.]+)=", CODE))
    assert {"image.repository", "config"} <= set_here
    dotted = {span for span in SPANS if re.fullmatch(r"\w+(\.\w+)+", span) and span.partition(".")[0] in values}
    assert "drain.timeoutSeconds" in dotted
    for name in set_here | dotted:
        functools.reduce(lambda tree, key: tree[key], name.split("."), values)


def test_build_arguments_and_targets_exist() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    arguments = dict(re.findall(r'^ARG (\w+)="?([^"\n]*)"?$', dockerfile, re.MULTILINE))
    table = dict(re.findall(r"^\| `([A-Z_]+)` \| (\S+)", GUIDE, re.MULTILINE))
    assert set(table) == set(arguments) - {""}
    for name, default in table.items():
        if default.startswith("`"):
            assert default.strip("`") == arguments[name], name
    assert set(re.findall(r"--build-arg (\w+)=", CODE)) <= set(arguments)
    stages = re.findall(r"^FROM \S+ AS (\w+)$", dockerfile, re.MULTILINE)
    assert set(re.findall(r"--target (\S+)", CODE)) == {"cpu", "cuda"} < set(stages)


def test_options_and_variables_exist() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    options = {option for parameter in group.commands["serve"].params for option in parameter.opts}
    # `--values` is Helm's.
    assert {span for span in SPANS if re.fullmatch(r"--[\w-]+", span)} - {"--values"} <= options
    compose = (ROOT / "deploy/compose.yaml").read_text()
    for variable in set(re.findall(r"\b(FUSION_\w+)=", COMMANDS)):
        assert f"${{{variable}:-" in compose, variable


def test_kubernetes_objects_exist(releases: dict[str, Release]) -> None:
    installed = set(re.findall(r"^helm install (\S+) helm ", COMMANDS, re.MULTILINE))
    assert installed == set(releases)
    assert set(re.findall(r"^helm (?:test|uninstall) (\S+)", COMMANDS, re.MULTILINE)) <= installed
    assert set(re.findall(r"--namespace (\S+)", COMMANDS)) == {"models"}
    named = re.findall(r"\b(deployment|service)/(([a-z]+)-[\w-]+)", COMMANDS)
    assert named
    for kind, name, release in named:
        assert releases[release].one(kind.capitalize())["metadata"]["name"] == name.replace(release, "demo", 1)
    labels = re.findall(r"app\.kubernetes\.io/(\w+)=([\w-]+)", CODE)
    assert {"instance", "component"} == {label for label, _ in labels}
    for label, value in labels:
        expected = "demo" if value in releases else value
        assert releases["llama"].pods[0]["metadata"]["labels"][f"app.kubernetes.io/{label}"] == expected
    assert set(re.findall(r"--container (\S+)", COMMANDS)) == {releases["llama"].server["name"]}


def test_secrets_are_those_that_the_chart_reads(releases: dict[str, Release]) -> None:
    created = re.findall(r"create secret generic (\S+)(.*)$", COMMANDS, re.MULTILINE)
    literals = {name: re.findall(r"--from-literal (\w+)=", rest) for name, rest in created}
    release = releases["llama"]
    pods = [*release.pods, *(hook for hook in release.hooks if hook["kind"] == "Pod")]
    for reference in find(pods, "secretKeyRef"):
        assert literals[reference["name"]] == [reference["key"]]
    read = {reference["name"] for kind in ("secretKeyRef", "secretRef") for reference in find(pods, kind)}
    assert read == set(literals)


def test_images_are_those_that_the_chart_runs(releases: dict[str, Release]) -> None:
    tags = {f"logit-fusion:{tag}" for tag in re.findall(r"logit-fusion:([\w.-]+)", COMMANDS)}
    assert tags == {release.server["image"] for release in releases.values()}


def test_the_request_is_one_that_the_server_takes(releases: dict[str, Release]) -> None:
    (body,) = (json.loads(found) for found in re.findall(r"-d\s+'([^']+)'", COMMANDS))
    config = yaml.safe_load(releases["llama"].one("ConfigMap")["data"]["config.yaml"])
    assert body["model"] in config["presets"]
    assert set(body) == {"model", "prompt", "max_tokens", "fusion"}
    (port,) = set(re.findall(r"port-forward service/\S+ 8000:(\d+)", COMMANDS))
    assert int(port) == releases["llama"].one("Service")["spec"]["ports"][0]["port"]


def test_the_adapters_rules_name_the_autoscalers_metrics() -> None:
    (text,) = re.findall(r"^  ```yaml\n(  rules:.*?)^  ```", GUIDE, re.DOTALL | re.MULTILINE)
    names = set()
    for rule in yaml.safe_load(text)["rules"]["custom"]:
        series = rule["seriesQuery"].partition("{")[0]
        renaming = rule.get("name", {"matches": "^(.*)$", "as": "$1"})
        names.add(re.sub(renaming["matches"], renaming["as"].replace("$", "\\"), series))
    metrics = yaml.safe_load(CASES["hpa"].read_text())["autoscaling"]["metrics"]  # type: ignore[union-attr]
    assert names == {metric["name"] for metric in metrics}
