"""What the chart renders of the server's place on the network: its names, its path, its metrics."""

from __future__ import annotations

import yaml

from tests.deploy.chart import ROOT, Release, render, rendered_cases
from tests.deploy.test_chart import by_name


def allowed_hosts(release: Release) -> list[str] | None:
    (found, *more) = [word for word in release.server["args"] if word.startswith("--set=http.allowed_hosts=")] or [None]
    assert not more
    return None if found is None else yaml.safe_load(found.split("=", 2)[2])


def test_without_keys_the_services_names_are_answered() -> None:
    service = ["demo-logit-fusion" + end for end in ("", ".models", ".models.svc", ".models.svc.cluster.local")]
    assert allowed_hosts(rendered_cases()["default"]) == service
    assert allowed_hosts(rendered_cases()["ingress"]) == [*service, "models.example.com"]
    assert allowed_hosts(rendered_cases()["gateway"]) == [*service, "models.example.com"]
    assert allowed_hosts(rendered_cases()["keys"]) is None, "who needs a key is not helped by another name"
    config = (ROOT / "zoo/zoo.yaml").read_text() + "http: {allowed_hosts: [a]}\n"
    assert allowed_hosts(render({"config": config})) is None, "the configuration's own are used"


def test_under_a_path() -> None:
    release = rendered_cases()["ingress"]
    (rule,) = release.one("Ingress")["spec"]["rules"]
    assert rule["http"]["paths"][0]["path"] == "/fusion"
    assert "--set=http.root_path=/fusion" in release.server["args"]
    assert "https://models.example.com/fusion/v1/models" in release.notes


def test_metrics_on_a_port_and_with_a_key_of_their_own() -> None:
    release = rendered_cases()["keda"]
    ports = {port["name"]: port["containerPort"] for port in release.server["ports"]}
    assert ports == {"http": 8000, "metrics": 9090}
    assert "--set=http.metrics_port=9090" in release.server["args"]
    key = by_name(release.server["env"])["LOGIT_FUSION_METRICS_KEY"]["valueFrom"]["secretKeyRef"]
    (endpoint,) = release.one("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["port"] in by_name(release.one("Service")["spec"]["ports"])
    assert (endpoint["port"], endpoint["authorization"]["credentials"]) == ("metrics", key)
    (policy,) = (
        rule
        for rule in release.one("NetworkPolicy")["spec"]["ingress"]
        if "ports" in rule and rule["ports"][0]["port"] == "metrics"
    )
    assert policy["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
