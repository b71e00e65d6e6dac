"""The dashboard is one that Grafana reads, the rules are Prometheus', and each alert has its runbook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.series import ALERTS, DEPLOY, OF_PROMETHEUS, dashboard, expressions, names, rules, variables

HERE = Path(__file__).parent
PROMETHEUS = DEPLOY / "prometheus" / "prometheus.yml"
GRID_WIDTH = 24
KINDS = {"row", "stat", "timeseries", "heatmap"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", str(ALERTS)), ("check", "config", str(PROMETHEUS)), ("test", "rules", "alerts_test.yml")],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    cases = [
        case
        for test in yaml.safe_load((HERE / "alerts_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    for rule in rules():
        found = [bool(case.get("exp_alerts")) for case in cases if case["alertname"] == rule["alert"]]
        assert {True, False} <= set(found), f"{rule['alert']}: a case in which it fires, and one in which it does not"


def test_every_alert_says_what_to_do() -> None:
    anchors = {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", (DEPLOY.parent / "docs" / "operations.md").read_text(), re.MULTILINE)
    }
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "docs/operations.md"
        assert anchor in anchors, f"{rule['alert']}: docs/operations.md has no section #{anchor}"


def test_the_dashboard_keeps_everything_in_grafanas_own_model() -> None:
    model: Any = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    encoder: Any = pytest.importorskip("grafana_foundation_sdk.cog.encoder")

    ours = dashboard()
    theirs = json.loads(encoder.JSONEncoder().encode(model.Dashboard.from_json(ours)))
    assert lost(ours, theirs) == []


def lost(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Paths of what the model did not take over as it is: a misspelled key, or a value of the wrong kind.

    A panel's options and targets are its plugin's own and come back as they are.
    """
    if isinstance(ours, dict):
        if not isinstance(theirs, dict):
            return [where]
        return [path for key, value in ours.items() for path in lost(value, theirs.get(key), f"{where}.{key}")]
    if isinstance(ours, list):
        if not isinstance(theirs, list) or len(ours) != len(theirs):
            return [where]
        return [path for i, value in enumerate(ours) for path in lost(value, theirs[i], f"{where}[{i}]")]
    return [] if ours == theirs else [where]


def test_panels_are_whole_and_do_not_overlap() -> None:
    content = dashboard()
    panels = content["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] in KINDS
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= GRID_WIDTH, panel["title"]
        assert not taken & cells, f"{panel['title']} covers another panel"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_every_expression_names_series_and_known_variables() -> None:
    for where, expression in expressions():
        assert names(expression), where
        assert "$" not in expression, f"{where}: a variable that the dashboard does not have"
    known = {variable["name"] for variable in dashboard()["templating"]["list"]}
    assert known == {"datasource", "instance", "preset", "expert"} == {name for name, _ in variables()} | {"datasource"}
    assert not OF_PROMETHEUS & {series for _, series in variables()}


def test_grafana_is_told_where_things_are() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    scrape = yaml.safe_load(PROMETHEUS.read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape, "rates over less than two scrapes are empty"
    (provider,) = yaml.safe_load((folder / "dashboards" / "logit-fusion.yaml").read_text())["providers"]
    assert provider["type"] == "file"
