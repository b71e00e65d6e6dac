"""The server on a network: its names, its path, browsers of other pages, old clients, and scrapers."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Configured
from tests.e2e.traffic import body
from tests.server_process import ServerProcess

ORIGIN = "https://app.example.com"
TEXT = "/v1/completions"
READ = ("/health", "/ready", "/version", "/metrics", "/v1/models", "/v1/fusion/experts", "/docs", "/openapi.json", "/")
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    # What OpenAI's SDK for browsers sends.
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang,x-stainless-retry-count",
}


def raw(server: ServerProcess, request: bytes) -> bytes:
    """Send bytes, and return all that comes until the server closes the connection."""
    port = httpx.URL(server.url).port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(request)
        return sock.makefile("rb").read()


def post(line: bytes, *headers: bytes, stream: bool = False) -> bytes:
    content = json.dumps(body(3, stream=stream)).encode()
    lines = [line, b"Content-Type: application/json", b"Content-Length: %d" % len(content), *headers]
    return b"\r\n".join([*lines, b"", content])


class TestOldAndOtherClients:
    @pytest.mark.parametrize("stream", [False, True])
    def test_http_1_0(self, server: ServerProcess, stream: bool) -> None:
        answer = raw(server, post(b"POST /v1/completions HTTP/1.0", stream=stream))
        head, _, content = answer.partition(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0]
        assert b"transfer-encoding" not in head.lower()
        if stream:
            events = content.decode().strip().split("\n\n")
            assert events[-1] == "data: [DONE]"
            assert all(event.startswith("data: ") for event in events)
        else:
            assert json.loads(content)["usage"]["completion_tokens"] == 3

    @pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
    def test_an_upgrade_that_is_offered(self, server: ServerProcess, protocol: bytes) -> None:
        offer = (
            b"Host: localhost",
            b"Connection: Upgrade, close",
            b"Upgrade: " + protocol,
            b"HTTP2-Settings: AAMAAABk",
        )
        answer = raw(server, post(b"POST /v1/completions HTTP/1.1", *offer))
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"completion_tokens":3' in answer

    @pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
    def test_curl_that_offers_http2(self, server: ServerProcess) -> None:
        command = ["curl", "--silent", "--http2", "--json", json.dumps(body(3)), server.url + TEXT]
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
        assert json.loads(done.stdout)["usage"]["completion_tokens"] == 3

    @pytest.mark.parametrize("path", READ)
    def test_head(self, server: ServerProcess, path: str) -> None:
        head, get = httpx.head(server.url + path), httpx.get(server.url + path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers.get("content-type") == get.headers.get("content-type")
        assert httpx.head(server.url + TEXT).status_code == 405

    def test_a_target_that_is_a_whole_url(self, server: ServerProcess) -> None:
        request = f"GET {server.url}/v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert raw(server, request.encode()).startswith(b"HTTP/1.1 200")

    @pytest.mark.parametrize("path", [TEXT, "/v1/chat/completions", "/v1/responses"])
    def test_nothing_on_the_way_holds_a_stream_back(self, server: ServerProcess, path: str) -> None:
        asked: dict[str, dict[str, Any]] = {
            TEXT: {"prompt": "a"},
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
            "/v1/responses": {"input": "a"},
        }
        tokens = {"max_output_tokens": 3} if path == "/v1/responses" else {"max_tokens": 3}
        answer = httpx.post(server.url + path, json={"model": "giant", "stream": True} | tokens | asked[path])
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["cache-control"] == "no-cache"


class TestNames:
    def test_a_rebound_name_is_not_answered(self, server: ServerProcess) -> None:
        for path in ("/v1/models", "/", "/metrics", "/health"):
            answer = httpx.get(server.url + path, headers={"Host": "evil.example"})
            assert answer.status_code == 421
            assert answer.json()["error"]["param"] == "Host"

    def test_local_names_are(self, server: ServerProcess) -> None:
        for host in ("localhost", "127.0.0.1:1", "[::1]", socket.gethostname()):
            assert httpx.get(server.url + "/v1/models", headers={"Host": host}).status_code == 200

    def test_names_of_the_configuration_are(self, configured: Configured) -> None:
        for host, status in (("models.example.com", 200), ("localhost", 200), ("evil.example", 421)):
            assert httpx.get(configured.server.url + "/v1/models", headers={"Host": host}).status_code == status


class TestBrowsersOfOtherPages:
    def test_preflight(self, configured: Configured) -> None:
        answer = httpx.options(configured.server.url + TEXT, headers=PREFLIGHT)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]

    @pytest.mark.parametrize(("fields", "status"), [({}, 200), ({"max_tokens": -1}, 400), ({"stream": True}, 200)])
    def test_answers_and_refusals_may_be_read(
        self, configured: Configured, fields: dict[str, object], status: int
    ) -> None:
        answer = httpx.post(configured.server.url + TEXT, json=body(3) | fields, headers={"Origin": ORIGIN})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens"} <= set(exposed)

    def test_other_pages_may_not(self, configured: Configured, server: ServerProcess) -> None:
        other = {"Origin": "https://evil.example"}
        for url in (configured.server.url, server.url):
            assert httpx.options(url + TEXT, headers=PREFLIGHT | other).status_code in (400, 405)
            answer = httpx.get(url + "/v1/models", headers=other)
            assert "access-control-allow-origin" not in answer.headers


class TestRootPath:
    @pytest.mark.parametrize("prefix", ["", "/fusion"])
    def test_a_proxy_may_take_it_off_or_not(self, configured: Configured, prefix: str) -> None:
        url = configured.server.url + prefix
        assert httpx.get(url + "/health").status_code == 200
        assert httpx.post(url + TEXT, json=body(2)).status_code == 200
        assert "'/fusion/openapi.json'" in httpx.get(url + "/docs").text
        assert httpx.get(url + "/openapi.json").json()["servers"] == [{"url": "/fusion"}]
        redirect = httpx.get(url + "/v1/models/")
        assert redirect.status_code == 307
        assert httpx.URL(redirect.headers["location"]).path == "/fusion/v1/models"
        assert httpx.get(url + "/playground/app.js").status_code == 200

    def test_the_playground_is_below(self, configured: Configured) -> None:
        redirect = httpx.get(configured.server.url + "/fusion")
        assert httpx.URL(redirect.headers["location"]).path == "/fusion/"
        assert "<html" in httpx.get(configured.server.url + "/fusion/").text


class TestMetricsElsewhere:
    def test_on_a_port_and_with_a_key_of_their_own(self, configured: Configured) -> None:
        assert httpx.get(configured.metrics_url).status_code == 401
        answer = httpx.get(configured.metrics_url, headers={"Authorization": f"Bearer {configured.metrics_key}"})
        assert answer.status_code == 200
        for name in ("vllm:num_requests_running", "fusion_admission_running", "http_requests_total"):
            assert name in answer.text

    def test_nowhere_else(self, configured: Configured) -> None:
        key = {"Authorization": f"Bearer {configured.metrics_key}"}
        assert httpx.get(configured.server.url + "/metrics", headers=key).status_code == 404

    def test_nothing_else_there(self, configured: Configured) -> None:
        base = httpx.URL(configured.metrics_url)
        for path in ("/v1/models", "/", "/docs", "/health"):
            assert httpx.get(base.copy_with(path=path)).status_code == 404
        answer = httpx.get(configured.metrics_url, headers={"Host": "evil.example"})
        assert answer.status_code == 421
