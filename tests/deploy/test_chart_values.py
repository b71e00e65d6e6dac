"""Values that make no sense are refused, in words that say what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.deploy.chart import CASES, CHART, ChartError, Release, render, render_all

FAMILY = "large: {model: /models/l}\nbase: {model: /models/b}\npresets: {giant: {weighting: none}}\n"
HASH = "0" * 64


NONSENSE: list[tuple[dict[str, Any], str]] = [
    ({"replica": 2}, "additional properties 'replica' not allowed"),
    ({"drain": {"timout": 2}}, "at '/drain': additional properties 'timout' not allowed"),
    ({"replicas": "two"}, "at '/replicas': got string, want integer"),
    ({"replicas": -1}, "at '/replicas': minimum: got -1, want 0"),
    ({"gpus": {"count": 1.5}}, "at '/gpus/count'"),
    ({"gpus": {"resource": "gpu"}}, "at '/gpus/resource': 'gpu' does not match pattern"),
    ({"resources": {"limits": {"memory": "lots"}}}, "at '/resources/limits/memory'"),
    ({"image": {"pullPolicy": "Sometimes"}}, "value must be one of 'Always', 'IfNotPresent', 'Never'"),
    ({"service": {"port": 70000}}, "at '/service/port': maximum: got 70,000, want 65,535"),
    ({"log": {"level": "loud"}}, "at '/log/level': value must be one of"),
    ({"drain": {"engineStopSeconds": 1}}, "at '/drain/engineStopSeconds': minimum: got 1, want 25"),
    ({"models": {"hub": [{"id": "a/b"}]}}, "at '/models/hub/0': missing property 'folder'"),
    ({"models": {"hub": [{"id": "a/b", "folder": "../x"}]}}, "at '/models/hub/0/folder': '../x' does not match"),
    ({"models": {"s3": [{"uri": "http://x", "folder": "x"}]}}, "at '/models/s3/0/uri': 'http://x' does not match"),
    ({"auth": {"keys": [{"name": "a", "sha256": "secret"}]}}, "at '/auth/keys/0/sha256': 'secret' does not match"),
    (
        {"auth": {"keys": [{"name": "a", "sha256": HASH}], "existingSecret": "b"}},
        "auth: set keys or existingSecret, not both",
    ),
    ({"ingress": {"enabled": True}}, "at '/ingress/host': minLength: got 0, want 1"),
    ({"httpRoute": {"enabled": True}}, "at '/httpRoute/parents': minItems: got 0, want 1"),
    ({"inferencePool": {"enabled": True}}, "at '/inferencePool/endpointPicker': minLength"),
    ({"keda": {"kvUse": 80}}, "at '/keda/kvUse': maximum: got 80, want 1"),
    ({"autoscaling": {"metrics": [{"name": "vllm:x", "averageValue": "1"}]}}, "'vllm:x' does not match pattern"),
    ({"rootPath": "fusion/"}, "at '/rootPath': 'fusion/' does not match pattern"),
    ({"allowedHosts": ["http://a"]}, "at '/allowedHosts/0': 'http://a' does not match pattern"),
    ({"metrics": {"port": 8000}}, "at '/metrics/port'"),
    # What takes two values to be wrong.
    (
        {"rootPath": "/fusion", "config": FAMILY + "http: {root_path: /other}"},
        "rootPath: config has http.root_path too",
    ),
    ({"config": FAMILY + "http: {metrics_port: 9090}"}, "http.metrics_port is set by metrics.port"),
    (
        {"allowedHosts": ["a"], "config": FAMILY + "http: {allowed_hosts: [b]}"},
        "allowedHosts: config has http.allowed_hosts too",
    ),
    ({"autoscaling": {"enabled": True}, "keda": {"enabled": True}}, "two autoscalers would"),
    ({"autoscaling": {"minReplicas": 9}}, "autoscaling.minReplicas: 9 is more than maxReplicas, 4"),
    ({"gpus": {"count": 2}}, "the engine gets 2 GPUs, but config's engine.tensor_parallel_size is 1"),
    ({"multiNode": {"enabled": True}}, "multiNode.enabled: needs gpus.count"),
    (
        {"multiNode": {"enabled": True}, "gpus": {"count": 1}, "config": FAMILY + "engine: {tensor_parallel_size: 2}"},
        "config needs engine.distributed_executor_backend: ray",
    ),
    ({"replicas": 3, "models": {"claim": {"create": True}}}, "ReadWriteOnce lets one node mount the claim"),
    ({"config": "large: {model: /models/l}\n"}, "config: lacks the section presets"),
    ({"config": "large: {model\n"}, "config: not valid YAML"),
    ({"config": {"large": {}}}, "at '/config': got object, want string"),
    (
        {"config": FAMILY + "auth: {keys_file: k}", "auth": {"existingSecret": "keys"}},
        "config: has a section auth, and auth.keys or auth.existingSecret is set too",
    ),
]


@pytest.fixture(scope="module")
def answers() -> list[Release | ChartError]:
    return render_all([values for values, _ in NONSENSE])


@pytest.mark.parametrize("index", range(len(NONSENSE)), ids=[message for _, message in NONSENSE])
def test_nonsense_is_refused(answers: list[Release | ChartError], index: int) -> None:
    answer, (_, message) = answers[index], NONSENSE[index]
    assert isinstance(answer, ChartError)
    assert message in str(answer)


def test_the_schema_knows_every_value() -> None:
    """Each key of values.yaml is in the schema, and the other way round: none can be forgotten."""
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())

    def compare(known: dict[str, Any], values: dict[str, Any], where: str) -> None:
        assert known["additionalProperties"] is False, f"{where}: any key would do"
        assert set(known["properties"]) - {"global"} == set(values), where
        for key, value in values.items():
            if isinstance(value, dict) and "properties" in known["properties"][key] and key != "resources":
                compare(known["properties"][key], value, f"{where}.{key}")

    compare(schema, yaml.safe_load((CHART / "values.yaml").read_text()), "values")


def test_own_configuration_replaces_the_demo() -> None:
    """The demo's experts and presets must not be merged into it."""
    config = yaml.safe_load(render({"config": FAMILY}).one("ConfigMap")["data"]["config.yaml"])
    assert config == yaml.safe_load(FAMILY)


def test_a_large_model_alone_needs_no_base() -> None:
    alone = "large: {model: /models/l}\npresets: {giant: {weighting: none}}\n"
    assert render({"config": alone}).one("ConfigMap")["data"]["config.yaml"] == alone


def test_at_least_six_cases_beside_the_default() -> None:
    assert {"gpu", "multi-node", "hpa", "keda", "ingress", "keys"} < set(CASES)
