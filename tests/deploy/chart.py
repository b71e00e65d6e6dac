"""The chart rendered by Helm's own engine, in the virtual environment of the deployment's tools."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm"
TOOLS = ROOT / ".venv/deploy-tools/bin"
CASES: dict[str, Path | None] = {
    "default": None,
    **{path.stem.removeprefix("values-"): path for path in sorted(CHART.glob("values-*.yaml"))},
    **{path.stem: path for path in sorted((CHART / "ci").glob("*.yaml"))},
}

Object = dict[str, Any]


class ChartError(Exception):
    """Helm refused the values."""


@dataclass(frozen=True)
class Release:
    """What Helm makes of the chart and some values."""

    objects: list[Object]
    hooks: list[Object]
    notes: str
    created: list[Object]
    """What reached the API, in the order in which Helm sent it."""

    def one(self, kind: str) -> Object:
        """Return the only object of a kind."""
        (found,) = [entry for entry in self.objects if entry["kind"] == kind]
        return found

    @property
    def pods(self) -> list[Object]:
        """The templates of the engine's pods."""
        if "LeaderWorkerSet" in {entry["kind"] for entry in self.objects}:
            template = self.one("LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
            return [template["leaderTemplate"], template["workerTemplate"]]
        return [self.one("Deployment")["spec"]["template"]]

    @property
    def server(self) -> Object:
        """The container that serves."""
        container: Object = self.pods[0]["spec"]["containers"][0]
        return container


def tool(name: str) -> str:
    """Return the path of one of the deployment's tools.

    Raises:
        FileNotFoundError: they are not installed.
    """
    path = TOOLS / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run `make setup-deploy`")
    return str(path)


def helm(action: str, many_values: Sequence[Object], chart: Path = CHART) -> list[Any]:
    """Run one action of Helm's engine on a chart, once with each of the values."""
    result = subprocess.run(
        [tool("python"), str(Path(__file__).with_name("helm_engine.py")), action, str(chart)],
        input=json.dumps(many_values),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HELM_DRIVER": "memory"},
        timeout=600,
    )
    answers: list[Any] = json.loads(result.stdout)
    return answers


def render_all(many_values: Sequence[Object | Path | None], chart: Path = CHART) -> list[Release | ChartError]:
    """Render the chart with each of the values as `helm install demo helm --namespace models` would."""
    read = [yaml.safe_load(values.read_text()) if isinstance(values, Path) else values or {} for values in many_values]
    return [_release(answer) for answer in helm("render", read, chart)]


def render(values: Object | Path | None = None, chart: Path = CHART) -> Release:
    """Render the chart with one set of values.

    Raises:
        ChartError: the chart does not take them.
    """
    (answer,) = render_all([values], chart)
    if isinstance(answer, ChartError):
        raise answer
    return answer


@functools.cache
def rendered_cases() -> dict[str, Release]:
    """Render all `CASES`, once."""
    releases = dict(zip(CASES, render_all(list(CASES.values())), strict=True))
    for name, release in releases.items():
        if isinstance(release, ChartError):
            raise ChartError(f"{name}: {release}")
    return releases  # type: ignore[return-value]


def _release(answer: Any) -> Release | ChartError:
    if "error" in answer:
        return ChartError(answer["error"])
    release = answer["release"]
    hooks = [document for hook in release["hooks"] for document in _documents(hook["manifest"])]
    return Release(_documents(release["manifest"]), hooks, release["info"]["notes"], answer["created"])


def _documents(manifest: str) -> list[Object]:
    return [document for document in yaml.safe_load_all(manifest) if document]
