"""Which series the dashboard and the alert rules ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "logit-fusion.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"

# Every selector has matchers, so that a name is what stands before a brace.
SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{")
LABELS = re.compile(r"label_values\(([a-zA-Z0-9_:]+), \w+\)")
# What Prometheus itself writes about a scrape.
OF_PROMETHEUS = {"up"}
OF_SPECULATION = {"fusion_drafted_tokens_total", "fusion_accepted_tokens_total", "fusion_speculation_steps_total"}
"""Of servers whose members draft."""
OF_ROLLOUT = {
    "fusion_split_requests_total",
    "fusion_shadow_answers_total",
    "fusion_shadow_tokens_total",
    "fusion_shadow_differing_tokens_total",
    "fusion_shadow_skipped_total",
}
"""Of servers with presets that split or have a shadow."""


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return content


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    """(where it stands, PromQL) of every panel and rule, with the dashboard's variables set to all."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], _filled_in(target["expr"])
    for rule in rules():
        yield rule["alert"], rule["expr"]


def names(expression: str) -> set[str]:
    """The series that an expression reads."""
    return set(SELECTOR.findall(expression))


def variables() -> Iterator[tuple[str, str]]:
    """(name, series) of the dashboard's variables that list the values of a label."""
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            (series,) = LABELS.findall(variable["query"]["query"])
            yield variable["name"], series


def _filled_in(expression: str) -> str:
    return re.sub(r'=(~?)"\$(instance|preset|expert)"', '=~".*"', expression).replace("$__rate_interval", "1m")
