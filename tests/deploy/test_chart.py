"""What the chart renders: valid objects, and in them what a deployment relies on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.chart import CASES, CHART, ROOT, Object, Release, helm, render, rendered_cases

KUBERNETES = "1.34.0"
NOT_KUBERNETES_OWN = {
    "leaderworkerset.x-k8s.io/v1",
    "keda.sh/v1alpha1",
    "monitoring.coreos.com/v1",
    "gateway.networking.k8s.io/v1",
    "inference.networking.k8s.io/v1",
}


def by_name(entries: list[Object]) -> dict[str, Any]:
    return {entry["name"]: entry for entry in entries}


def server_config(release: Release) -> dict[str, Any]:
    (found,) = (entry for entry in release.objects if "config.yaml" in entry.get("data", {}))
    config: dict[str, Any] = yaml.safe_load(found["data"]["config.yaml"])
    return config


def test_lint() -> None:
    (report,) = helm("lint", [{}])
    assert report["TotalChartsLinted"] == 1
    assert report["Errors"] is None
    # Severity 1 is information: that the chart has no icon.
    assert {message["Severity"] for message in report["Messages"]} <= {1}


def test_every_object_is_valid(release: Release) -> None:
    own = [entry for entry in release.objects + release.hooks if entry["apiVersion"] not in NOT_KUBERNETES_OWN]
    assert len(own) >= 6
    for entry in own:
        kubernetes_validate.validate(entry, KUBERNETES, strict=True)


def test_pods_of_a_leader_worker_set_are_valid() -> None:
    for pod in rendered_cases()["multi-node"].pods:
        entry = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"} | pod["metadata"], "spec": pod["spec"]}
        kubernetes_validate.validate(entry, KUBERNETES, strict=True)


def test_everything_rendered_reaches_the_api(release: Release) -> None:
    names = {(entry["kind"], entry["metadata"]["name"]) for entry in release.objects}
    assert {(entry["kind"], entry["metadata"]["name"]) for entry in release.created} == names
    assert len(names) == len(release.objects)


def test_selectors_find_the_pods_that_serve(release: Release) -> None:
    labels = release.pods[0]["metadata"]["labels"].items()
    selectors = [release.one("Service")["spec"]["selector"]]
    selectors += [
        entry["spec"]["selector"]["matchLabels"]
        for entry in release.objects
        if entry["kind"] in ("Deployment", "PodDisruptionBudget", "InferencePool")
    ]
    for selector in selectors:
        assert selector.items() <= labels
        for worker in release.pods[1:]:
            assert not selector.items() <= worker["metadata"]["labels"].items(), "workers answer no requests"


def test_probes(release: Release) -> None:
    server = release.server
    port, *_ = server["ports"]
    assert (port["name"], port["containerPort"]) == ("http", 8000)
    assert "--port=8000" in server["args"]
    paths = {name: server[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"startupProbe": "/health", "readinessProbe": "/ready", "livenessProbe": "/health"}
    assert {server[name]["httpGet"]["port"] for name in paths} == {"http"}
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 900


def test_the_grace_period_covers_the_drain(release: Release) -> None:
    server = release.server
    pre_stop = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    (drain,) = (int(word.partition("=")[2]) for word in server["args"] if word.startswith("--drain-timeout="))
    for pod in release.pods:
        assert pod["spec"]["terminationGracePeriodSeconds"] > pre_stop + drain + 20, "the engine takes up to 20 s"


def test_containers_may_do_nothing_but_run(release: Release) -> None:
    for pod in [*release.pods, *(hook for hook in release.hooks if hook["kind"] == "Pod")]:
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}


def test_what_is_written_has_a_volume(release: Release) -> None:
    for pod in release.pods:
        volumes = by_name(pod["spec"]["volumes"])
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounts.values()) <= set(volumes)
            assert "emptyDir" in volumes[mounts["/tmp"]]
        assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"


def test_the_configuration_reaches_the_server(release: Release) -> None:
    assert "--config=/etc/logit-fusion/config.yaml" in release.server["args"]
    mounts = {mount["mountPath"]: mount["name"] for mount in release.server["volumeMounts"]}
    volume = by_name(release.pods[0]["spec"]["volumes"])[mounts["/etc/logit-fusion"]]
    assert volume["projected"]["sources"][0] == {"configMap": {"name": "demo-logit-fusion"}}
    assert {"large", "base", "experts", "presets"} <= set(server_config(release))


def test_by_default_the_demo_models(default: Release) -> None:
    config, zoo = server_config(default), yaml.safe_load((ROOT / "zoo/zoo.yaml").read_text())
    for preset in zoo["presets"].values():
        preset |= {"route": f"/opt/logit-fusion/zoo/{preset['route']}"} if "route" in preset else {}
    assert config["presets"] == zoo["presets"]
    assert list(config["presets"]) == list(zoo["presets"]), "the first preset is the default one"
    assert config["engine"] == zoo["engine"]
    assert config["large"]["model"] == f"/opt/logit-fusion/zoo/{zoo['large']['model']}"
    assert default.server["image"] == "logit-fusion:0.1.0-cpu"
    assert default.one("Deployment")["spec"]["replicas"] == 1
    assert {entry["kind"] for entry in default.objects} == {
        "ConfigMap",
        "Deployment",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    }


@pytest.mark.parametrize(
    ("case", "count"), [("gpu", 1), ("qwen2.5-32b", 2), ("llama-3.1-70b", 4), ("gpu-70b", 8), ("multi-node", 8)]
)
def test_gpus(case: str, count: int) -> None:
    release = rendered_cases()[case]
    for pod in release.pods:
        container = pod["spec"]["containers"][0]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == count
        assert container["resources"]["requests"]["nvidia.com/gpu"] == count
        assert container["image"] == "logit-fusion:0.1.0-cuda"
        assert pod["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert server_config(release)["engine"].get("tensor_parallel_size", 1) == count * len(release.pods)


def test_models_are_fetched_before_the_server_starts() -> None:
    release = rendered_cases()["gpu"]
    fetched = {}
    for container in release.pods[0]["spec"]["initContainers"]:
        fetched[container["command"][-1]] = container["command"][:3]
    assert fetched == {
        "/models/llama-2-13b": ["hf", "download", "meta-llama/Llama-2-13b-hf"],
        "/models/tinyllama-1.1b": ["hf", "download", "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"],
        "/models/tinyllama-math": ["aws", "s3", "sync"],
    }
    config = server_config(release)
    members = [config["large"], config["base"], *config["experts"].values()]
    assert {member["model"] for member in members} == set(fetched)
    claim = release.one("PersistentVolumeClaim")
    volume = by_name(release.pods[0]["spec"]["volumes"])["models"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_several_nodes() -> None:
    release = rendered_cases()["multi-node"]
    group = release.one("LeaderWorkerSet")["spec"]
    assert group["leaderWorkerTemplate"]["size"] == 2
    leader, worker = (pod["spec"]["containers"][0] for pod in release.pods)
    assert leader["command"][:4] == ["tini", "--", "sh", "-c"]
    assert "ray start --head" in leader["command"][4]
    assert leader["args"][0] == "serve"
    assert worker["command"][2:] == ["ray", "start", "--block", "--address=$(LWS_LEADER_ADDRESS):6379"]
    assert "readinessProbe" not in worker


def test_horizontal_pod_autoscaler() -> None:
    release = rendered_cases()["hpa"]
    spec = release.one("HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"]["name"] == release.one("Deployment")["metadata"]["name"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 6)
    names = [metric["pods"]["metric"]["name"] for metric in spec["metrics"]]
    assert names == ["fusion_admission_queue_depth", "vllm_kv_cache_usage_perc"]
    assert "replicas" not in release.one("Deployment")["spec"], "the autoscaler's number must not be overwritten"


def test_keda() -> None:
    release = rendered_cases()["keda"]
    spec = release.one("ScaledObject")["spec"]
    assert spec["scaleTargetRef"]["name"] == release.one("Deployment")["metadata"]["name"]
    queue, cache = (trigger["metadata"] for trigger in spec["triggers"])
    assert queue["query"] == 'sum(fusion_admission_queue_depth{namespace="models",service="demo-logit-fusion"})'
    assert cache["query"] == 'sum(vllm:kv_cache_usage_perc{namespace="models",service="demo-logit-fusion"})'
    assert (queue["threshold"], cache["threshold"]) == ("8", "0.75")
    assert "replicas" not in release.one("Deployment")["spec"]


def test_ingress_and_network_policy() -> None:
    release = rendered_cases()["ingress"]
    (rule,) = release.one("Ingress")["spec"]["rules"]
    assert rule["host"] == "models.example.com"
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": release.one("Service")["metadata"]["name"], "port": {"name": "http"}}
    policy = release.one("NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= release.pods[0]["metadata"]["labels"].items()
    assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": "http"}]
    assert policy["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] == (
        "ingress-nginx"
    )


def test_gateway_and_inference_pool() -> None:
    release = rendered_cases()["gateway"]
    (rule,) = release.one("HTTPRoute")["spec"]["rules"]
    pool = release.one("InferencePool")
    assert rule["backendRefs"] == [
        {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": pool["metadata"]["name"]}
    ]
    assert pool["spec"]["targetPorts"] == [{"number": 8000}]
    assert pool["spec"]["endpointPickerRef"]["name"] == "demo-epp"
    assert release.one("Deployment")["spec"]["replicas"] == 3


def test_keys_are_a_secret_beside_the_configuration() -> None:
    release = rendered_cases()["keys"]
    secret = release.one("Secret")
    keys = yaml.safe_load(secret["stringData"]["keys.yaml"])["keys"]
    assert keys == yaml.safe_load(CASES["keys"].read_text())["auth"]["keys"]  # type: ignore[union-attr]
    assert server_config(release)["auth"] == {"keys_file": "keys.yaml"}
    sources = by_name(release.pods[0]["spec"]["volumes"])["config"]["projected"]["sources"]
    assert sources[1]["secret"]["name"] == secret["metadata"]["name"]
    assert sources[1]["secret"]["items"] == [{"key": "keys.yaml", "path": "keys.yaml"}]
    assert keys[0]["sha256"] not in json.dumps(release.one("ConfigMap"))
    (test,) = (hook for hook in release.hooks if hook["kind"] == "Pod")
    key = test["spec"]["containers"][0]["env"][0]
    assert key["valueFrom"]["secretKeyRef"] == {"name": "demo-key", "key": "key"}


def test_monitoring() -> None:
    release = rendered_cases()["monitoring"]
    monitor = release.one("ServiceMonitor")["spec"]
    service = release.one("Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == (service["spec"]["ports"][0]["name"], "/metrics")
    assert endpoint["interval"] == "30s"
    # The rules ask for the job by name, and the operator would call it by the Service's.
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "logit-fusion"}]
    assert 'job="logit-fusion"' in (ROOT / "deploy/prometheus/alerts.yml").read_text()
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    assert release.one("PrometheusRule")["spec"] == alerts
    (dashboard,) = (entry for entry in release.objects if "grafana_dashboard" in entry["metadata"]["labels"])
    shown = json.loads(dashboard["data"]["logit-fusion.json"])
    assert shown == json.loads((ROOT / "deploy/grafana/logit-fusion.json").read_text())


def test_a_new_configuration_means_new_pods(default: Release) -> None:
    changed = server_config(default) | {"presets": {"giant": {"weighting": "none"}}}
    other = render({"config": yaml.safe_dump(changed)})
    checksums = [pod["metadata"]["annotations"]["checksum/config"] for pod in default.pods + other.pods]
    assert checksums[0] != checksums[1]


def test_helm_test_calls_the_service(default: Release) -> None:
    (config,) = (hook for hook in default.hooks if hook["kind"] == "ConfigMap")
    (pod,) = (hook for hook in default.hooks if hook["kind"] == "Pod")
    assert config["data"]["smoke.py"] == (ROOT / "deploy/smoke.py").read_text()
    assert pod["spec"]["containers"][0]["command"] == ["python", "/smoke/smoke.py", "http://demo-logit-fusion:80"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"


def test_notes_tell_the_next_steps(default: Release) -> None:
    assert "helm test demo --namespace models" in default.notes
    assert "port-forward service/demo-logit-fusion 8000:80" in default.notes
    assert "Authorization" in rendered_cases()["keys"].notes
    assert "https://models.example.com/fusion/v1/models" in rendered_cases()["ingress"].notes


@pytest.mark.parametrize("path", [path for path in CASES.values() if path], ids=lambda path: path.stem)
def test_the_values_files_name_no_default(path: Path) -> None:
    """A values file says only what differs, so that it stays readable; a key that says the default is noise."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    for key, value in yaml.safe_load(path.read_text()).items():
        assert value != defaults[key], f"{path.name}: {key} is the default"
