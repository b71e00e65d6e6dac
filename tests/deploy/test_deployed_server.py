"""What the chart deploys is what runs: its start command and configuration, on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.deploy.chart import ROOT, Release, rendered_cases
from tests.server_process import ServerProcess

IN_IMAGE = "/opt/logit-fusion/"
KEY = "demo-key"


@pytest.fixture(scope="module")
def keys() -> Release:
    """The demo models behind an API key."""
    return rendered_cases()["keys"]


@pytest.fixture(scope="module")
def deployed(keys: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The server as the container starts it, but for the folder of its files and the port."""
    folder = tmp_path_factory.mktemp("etc")
    config = keys.one("ConfigMap")["data"]["config.yaml"]
    assert IN_IMAGE in config
    # As the projected volume lays them out: the ConfigMap's and the Secret's entries side by side.
    (folder / "config.yaml").write_text(config.replace(IN_IMAGE, f"{ROOT}/"))
    (folder / "keys.yaml").write_text(keys.one("Secret")["stringData"]["keys.yaml"])
    command, *arguments = keys.server["args"]
    assert command == "serve"
    for replaced in ("--config=/etc/logit-fusion/config.yaml", "--port=8000"):
        arguments.remove(replaced)
    with ServerProcess(folder / "config.yaml", folder / "log", *arguments) as process:
        yield process


def smoke(url: str, key: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "LOGIT_FUSION_API_KEY"}
    if key:
        environment["LOGIT_FUSION_API_KEY"] = key
    return subprocess.run(
        [sys.executable, str(ROOT / "deploy/smoke.py"), url],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_probes_answer(deployed: ServerProcess, keys: Release) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert httpx.get(deployed.url + keys.server[probe]["httpGet"]["path"]).status_code == 200


def test_the_smoke_test_passes(deployed: ServerProcess) -> None:
    result = smoke(deployed.url, KEY)
    assert result.returncode == 0, result.stderr
    presets = yaml.safe_load((ROOT / "zoo/zoo.yaml").read_text())["presets"]
    for preset in presets:
        assert f"{preset}: " in result.stdout
    assert "steered by math, facts, text" in result.stdout
    assert result.stdout.endswith("all well\n")


def test_without_a_key_nobody_is_served(deployed: ServerProcess) -> None:
    assert httpx.get(deployed.url + "/v1/models").status_code == 401
    assert "keys are needed" in smoke(deployed.url, None).stdout
    assert smoke(deployed.url, "another").returncode != 0


def test_it_ends_within_the_grace_period(deployed: ServerProcess, keys: Release) -> None:
    """Last, because it ends the server."""
    grace = keys.pods[0]["spec"]["terminationGracePeriodSeconds"]
    started = time.monotonic()
    assert deployed.stop(seconds=grace) == 0
    assert time.monotonic() - started < grace
    assert deployed.wait_until_gone() == []


def test_the_smoke_test_fails_without_a_server(tmp_path: Path) -> None:
    assert smoke("http://127.0.0.1:9", KEY).returncode != 0
