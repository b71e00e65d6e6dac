"""Lints and renders a chart with Helm's own engine, as a program: `helm_engine.py lint|render CHART < values.json`,
where the input is a list of values.

Runs in the virtual environment of requirements/deploy-tools.txt, because helm-sdkpy needs Python 3.12 or newer. Its
`Install` wants a cluster: a stub of the Kubernetes API tells which kinds exist, has no objects, and accepts what is
sent to it. HELM_DRIVER=memory must be set. Prints JSON: for each of the values the result,
or {"error": ...}.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import helm_sdkpy  # type: ignore[import-not-found]

KUBERNETES = {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
KINDS = {
    "v1": "ConfigMap Secret Service ServiceAccount PersistentVolumeClaim Pod Namespace",
    "apps/v1": "Deployment",
    "autoscaling/v2": "HorizontalPodAutoscaler",
    "policy/v1": "PodDisruptionBudget",
    "networking.k8s.io/v1": "NetworkPolicy Ingress",
    "leaderworkerset.x-k8s.io/v1": "LeaderWorkerSet",
    "keda.sh/v1alpha1": "ScaledObject",
    "monitoring.coreos.com/v1": "ServiceMonitor PrometheusRule",
    "gateway.networking.k8s.io/v1": "HTTPRoute",
    "inference.networking.k8s.io/v1": "InferencePool",
}


def plural(kind: str) -> str:
    """Name a kind as the API's paths do."""
    return re.sub(r"y$", "ie", kind.lower()) + ("es" if kind.endswith("s") else "s")


class KubernetesStub(BaseHTTPRequestHandler):
    """An API server that knows kinds and keeps nothing; `created` records the objects that were sent."""

    created: list[dict[str, Any]]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        groups = {name.rpartition("/")[0]: name for name in KINDS if "/" in name}
        if path == "version":
            self.answer(KUBERNETES)
        elif path == "api":
            self.answer({"kind": "APIVersions", "versions": ["v1"]})
        elif path == "apis":
            self.answer(
                {"kind": "APIGroupList", "apiVersion": "v1", "groups": [self.group(*g) for g in groups.items()]}
            )
        elif (version := re.sub("^apis?/", "", path)) in KINDS:
            self.answer(
                {
                    "kind": "APIResourceList",
                    "groupVersion": version,
                    "resources": [
                        {
                            "name": plural(kind),
                            "kind": kind,
                            "namespaced": kind != "Namespace",
                            "verbs": ["create", "get"],
                        }
                        for kind in KINDS[version].split()
                    ],
                }
            )
        else:
            self.answer({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}, 404)

    def do_POST(self) -> None:
        created = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.created.append(created)
        self.answer(created, 201)

    @staticmethod
    def group(name: str, version: str) -> dict[str, Any]:
        entry = {"groupVersion": version, "version": version.rpartition("/")[2]}
        return {"name": name, "versions": [entry], "preferredVersion": entry}

    def answer(self, body: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


def kubeconfig(port: int) -> str:
    """Point to the stub."""
    cluster = {"name": "stub", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "stub", "context": {"cluster": "stub", "user": "stub"}}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "contexts": [context],
            "current-context": "stub",
            "users": [{"name": "stub", "user": {}}],
        }
    )


async def run(action: str, chart: str, values: dict[str, Any], kubeconfig: str) -> Any:
    """Do one thing with the chart and one set of values; each has a cluster of its own."""
    KubernetesStub.created = []
    configuration = helm_sdkpy.Configuration(namespace="models", kubeconfig=kubeconfig)
    try:
        if action == "lint":
            return await helm_sdkpy.Lint(configuration).run(chart)
        release = await helm_sdkpy.Install(configuration).run("demo", chart, values=values, wait=False)
    except helm_sdkpy.HelmError as error:
        return {"error": str(error)}
    return {"release": release, "created": KubernetesStub.created}


async def main(action: str, chart: str, many_values: list[dict[str, Any]]) -> list[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), KubernetesStub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(kubeconfig(server.server_address[1]))
        file.flush()
        return [await run(action, chart, values, file.name) for values in many_values]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], sys.argv[2], json.load(sys.stdin)))))
