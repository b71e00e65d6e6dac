"""The files that deploy the server without Kubernetes: image, Compose, systemd, workflows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.core import TyperGroup

from deploy import release
from logit_fusion.cli import app
from tests.deploy.chart import CASES, CHART, ROOT, Release, render, rendered_cases, tool

COMPOSE = (ROOT / "deploy/compose.yaml", ROOT / "deploy/compose.gpu.yaml")
UNIT = ROOT / "deploy/systemd/logit-fusion.service"
WORKFLOWS = ROOT / ".github/workflows"


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def interpolated(text: str) -> str:
    """Give `${NAME:-default}` its default, as Compose does first."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_the_wheel_has_what_lies_beside_the_code() -> None:
    """What is left out is missed only where the wheel is installed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    data: dict[str, list[str]] = settings["package-data"]
    for package, patterns in data.items():
        known = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
        found = {path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix != ".py"}
        files = {path for path in found if "__pycache__" not in path.parts}
        assert files
        assert not files - known


def compose_service(name: str) -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load(interpolated(COMPOSE[0].read_text()))["services"][name]
    return service


def unit_setting(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(value)


def start_commands() -> dict[str, list[str]]:
    """The arguments of `logit-fusion` in each way of deploying it."""
    unit = unit_setting("ExecStart").split()
    assert unit[0].endswith("/bin/logit-fusion")
    dockerfile = re.findall(r"^CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    chart = {name: rendered_cases()[name].server["args"] for name in CASES}
    return chart | {
        "compose": compose_service("logit-fusion")["command"],
        "systemd": unit[1:],
        "image": json.loads(dockerfile[-1]),
    }


@pytest.mark.parametrize("where", [*CASES, "compose", "systemd", "image"])
def test_the_command_line_takes_the_start_command(where: str) -> None:
    name, *arguments = start_commands()[where]
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    command = group.commands[name]
    # The configuration's folder is the container's; everything else is parsed as it stands.
    context = command.make_context(name, list(arguments), resilient_parsing=False)
    assert context.params["port"] == 8000
    assert (context.params["config"] is None) == (where == "image")


def test_hadolint() -> None:
    result = run(tool("hadolint"), str(ROOT / "Dockerfile"))
    assert result.returncode == 0, result.stdout


def test_the_image_gets_what_the_package_needs() -> None:
    """Every package that is installed is let through .dockerignore, and nothing else big."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in packages} <= allowed
    assert {"pyproject.toml", "README.md", "LICENSE"} <= allowed


def test_the_image_is_ended_by_the_signal_that_drains() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "STOPSIGNAL SIGTERM" in text
    assert 'ENTRYPOINT ["tini", "--", "logit-fusion"]' in text
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"] * 2


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_compose_is_valid(path: Path) -> None:
    # A typed parser of the specification; it does not interpolate.
    program = (
        "import sys; from compose_spec import PyCompose; print(*PyCompose.from_yaml(sys.stdin.read()).service_names())"
    )
    text = interpolated(path.read_text())
    result = run(tool("python"), "-c", program, input=text)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == list(yaml.safe_load(text)["services"])
    wrong = run(tool("python"), "-c", program, input=text.replace("services:\n", "services:\n  x: {imgae: y}\n"))
    assert wrong.returncode != 0


def test_compose_mounts_what_is_there() -> None:
    services = yaml.safe_load(interpolated(COMPOSE[0].read_text()))
    for name, service in services["services"].items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE[0].parent / source).exists(), f"{name}: {source}"
            else:
                assert source in services["volumes"], f"{name}: {source}"


def test_compose_agrees_with_prometheus_and_grafana() -> None:
    services = yaml.safe_load(interpolated(COMPOSE[0].read_text()))["services"]
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (target,) = (t for job in prometheus["scrape_configs"] for c in job["static_configs"] for t in c["targets"])
    host, port = target.split(":")
    assert host in services
    assert f"--port={port}" in services[host]["command"]
    assert services[host]["hostname"] == host, "a server without keys answers to its own names alone"
    provisioning = ROOT / "deploy/grafana/provisioning"
    source = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services
    provider = yaml.safe_load((provisioning / "dashboards/logit-fusion.yaml").read_text())["providers"][0]
    mounts = [mount.split(":")[:2] for mount in services["grafana"]["volumes"]]
    assert ["./grafana/provisioning", "/etc/grafana/provisioning"] in mounts
    assert ["./grafana/logit-fusion.json", provider["options"]["path"] + "/logit-fusion.json"] in mounts
    dashboard = (ROOT / "deploy/grafana/logit-fusion.json").read_text()
    assert source["uid"] in dashboard or "${datasource}" in dashboard


@pytest.mark.parametrize("where", ["compose", "systemd"])
def test_the_grace_period_covers_the_drain(where: str) -> None:
    words = " ".join(start_commands()[where]).replace("=", " ").split()
    drain = float(words[words.index("--drain-timeout") + 1])
    grace = (
        compose_service("logit-fusion")["stop_grace_period"] if where == "compose" else unit_setting("TimeoutStopSec")
    )
    assert float(grace.rstrip("s")) >= drain + 20, "the engine takes up to 20 s"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    # systemd-analyze looks for the program, which this machine has elsewhere.
    unit.write_text(UNIT.read_text().replace("/opt/logit-fusion/.venv/bin/logit-fusion", "/bin/true"))
    result = run("systemd-analyze", "verify", str(unit))
    complaints = [line for line in result.stderr.splitlines() if UNIT.name in line]
    assert result.returncode == 0, result.stderr
    assert complaints == []


def test_workflows() -> None:
    result = run(tool("zizmor"), "--offline", "--no-progress", str(WORKFLOWS))
    assert result.returncode == 0, result.stdout
    for path in WORKFLOWS.glob("*.yml"):
        text = path.read_text()
        for action in re.findall(r"uses: (\S+)", text):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action), f"{path.name}: {action} is not pinned by commit"
        assert ("make docs" if path.name == "docs.yml" else ".ci/run") in text


def test_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_demo_is_the_same_everywhere() -> None:
    chart: Release = rendered_cases()["default"]
    assert compose_service("logit-fusion")["volumes"][0] == "../zoo:/srv/fusion:ro"
    assert chart.one("Deployment")["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == int(
        compose_service("logit-fusion")["user"].split(":")[0]
    )


def test_a_release_has_the_packages_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "notes", lambda changelog, version: "- New.\n")
    with pytest.raises(SystemExit, match=r"have version .*, not 9\.9\.9"):
        release.main("9.9.9", tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_a_release_carries_notes_and_chart(tmp_path: Path) -> None:
    changelog = "# Changelog\n\n## 0.2.0 (2030-01-01)\n\n- New.\n\n## 0.1.0 (unreleased)\n\n- First.\n"
    assert release.notes(changelog, "0.2.0") == "- New.\n"
    for version in ("0.1.0", "0.3.0", "0.2", ""):
        with pytest.raises(SystemExit, match=r"unreleased|no section"):
            release.notes(changelog, version)
    archive = release.pack_chart("0.1.0", tmp_path)
    # Without the repository around it: what the chart's links point to is inside.
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    names = {str(path.relative_to(tmp_path / "logit-fusion")) for path in (tmp_path / "logit-fusion").rglob("*")}
    assert {"Chart.yaml", "values.schema.json", "files/zoo.yaml", "files/smoke.py", "files/alerts.yml"} <= names
    assert "ci" not in names
    assert render(chart=tmp_path / "logit-fusion").objects == rendered_cases()["default"].objects
