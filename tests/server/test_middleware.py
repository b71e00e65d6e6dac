"""The middleware around small apps: names, paths, keys, and rates."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.types import ASGIApp

from server import auth
from server.admission import Rates
from server.api.middleware import AllowedHosts, Authentication, RateHeaders, RequestLine, RootPath, client_of
from server.api.middleware.rates import duration
from server.auth import Client, Keys
from server.config.http import HttpConfig
from server.options import KEY_VARIABLE

KEY = {"Authorization": "Bearer key"}
METRICS_KEY = {"Authorization": "Bearer scraper"}


def client(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")


def small_app(root_path: str = "") -> FastAPI:
    app = FastAPI(root_path=root_path)

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        return {"path": request.url.path}

    for path in ("/health", "/metrics", "/playground/a.js"):
        app.add_api_route(path, models, methods=["GET"])
    return app


class TestAllowedHosts:
    @staticmethod
    async def status(names: tuple[str, ...], host: str) -> int:
        async with client(AllowedHosts(small_app(), names)) as here:
            return (await here.get("/health", headers={"Host": host})).status_code

    @pytest.mark.parametrize(
        "host",
        [
            "localhost",
            "LOCALHOST:8000",
            "localhost.:80",
            "a.localhost",
            "127.0.0.1:8000",
            "10.1.2.3",
            "[::1]:8000",
            "[fe80::1]",
            f"{socket.gethostname()}:8000",
            "",
        ],
    )
    async def test_local_names(self, host: str) -> None:
        assert await self.status((), host) == 200

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "notlocalhost",
            # A browser sends these, and Starlette's URL of them falls back to the address that was called.
            "a{b.evil.example",
            "evil.example:",
            "evil.example:99999",
            "[evil.example",
            "[::1].evil.example]",
            ".",
            "1.2.3",
        ],
    )
    async def test_others(self, host: str) -> None:
        assert await self.status((), host) == 421

    async def test_more_names(self) -> None:
        names = HttpConfig(allowed_hosts=("Models.Example.com", "*.svc.cluster.local")).allowed_hosts
        assert names is not None
        for host, status in (
            ("models.example.com", 200),
            ("models.example.com:443", 200),
            ("a.b.svc.cluster.local", 200),
            ("localhost", 200),
            ("example.com", 421),
            ("svc.cluster.local", 421),
            ("x.models.example.com", 421),
        ):
            assert await self.status(names, host) == status, host
        assert await self.status(("*",), "evil.example") == 200

    async def test_the_answer_says_what_to_do(self) -> None:
        async with client(AllowedHosts(small_app(), ())) as here:
            answer = await here.get("/health", headers={"Host": "models.example.com"})
        error = answer.json()["error"]
        assert error["param"] == "Host"
        assert "'models.example.com'" in error["message"]
        assert "allowed_hosts" in error["message"]


class TestPaths:
    @pytest.mark.parametrize("path", ["/v1/models", "/fusion/v1/models"])
    async def test_a_proxy_may_take_the_prefix_off_or_not(self, path: str) -> None:
        app = small_app("/fusion")
        app.add_middleware(RootPath, root_path="/fusion")
        async with client(app) as here:
            assert (await here.get(path)).json() == {"path": "/fusion/v1/models"}
            redirect = await here.get(path + "/")
            assert (redirect.status_code, redirect.headers["location"]) == (307, "http://127.0.0.1/fusion/v1/models")
            docs = await here.get("/docs")
            assert "'/fusion/openapi.json'" in docs.text
            assert (await here.get("/fusion/openapi.json")).json()["servers"] == [{"url": "/fusion"}]

    async def test_a_path_that_only_begins_alike(self) -> None:
        app = small_app("/v")
        app.add_middleware(RootPath, root_path="/v")
        async with client(app) as here:
            assert (await here.get("/v1/models")).json() == {"path": "/v/v1/models"}

    async def test_head_asks_what_get_answers(self) -> None:
        async with client(RequestLine(small_app())) as here:
            assert (await here.head("/health")).status_code == 200
            assert (await here.head("/nothing")).status_code == 404

    @pytest.mark.parametrize(
        ("target", "path"), [("http://a:8000/v1/models", "/v1/models"), ("http://a", "/"), ("HTTP", "HTTP")]
    )
    async def test_a_target_that_is_a_whole_url(self, target: str, path: str) -> None:
        seen: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append((scope["path"], scope["raw_path"]))

        scope = {"type": "http", "method": "GET", "path": target, "raw_path": target.encode()}
        await RequestLine(app)(scope, None, None)  # type: ignore[arg-type]
        assert seen == [(path, path.encode())]


class TestKeys:
    @pytest.fixture
    def keys(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Keys]:
        def make(api: str, metrics: str) -> Keys:
            monkeypatch.setenv(KEY_VARIABLE, api)
            monkeypatch.setenv(auth.METRICS_ENVIRONMENT, metrics)
            return Keys(None)

        return make

    @staticmethod
    async def statuses(keys: Keys, path: str) -> list[int]:
        """Without a key, with the API's, with the metrics'."""
        async with client(Authentication(small_app(), keys)) as here:
            return [(await here.get(path, headers=headers)).status_code for headers in ({}, KEY, METRICS_KEY)]

    async def test_metrics_may_have_a_key_of_their_own(self, keys: Callable[[str, str], Keys]) -> None:
        both = keys("key", "other, scraper")
        assert await self.statuses(both, "/metrics") == [401, 401, 200]
        assert await self.statuses(both, "/metrics/") == [401, 401, 307]
        assert await self.statuses(both, "/v1/models") == [401, 200, 401]
        assert await self.statuses(both, "/health") == [200, 200, 200]

    async def test_or_none(self, keys: Callable[[str, str], Keys]) -> None:
        assert await self.statuses(keys("key", ""), "/metrics") == [200, 200, 200]

    async def test_or_be_the_only_ones_that_have_one(self, keys: Callable[[str, str], Keys]) -> None:
        only = keys("", "scraper")
        assert not only.required
        assert await self.statuses(only, "/metrics") == [401, 401, 200]
        assert await self.statuses(only, "/v1/models") == [200, 200, 200]

    async def test_no_root_path_opens_what_needs_a_key(self, keys: Callable[[str, str], Keys]) -> None:
        """The router takes the prefix off once, and so must the check."""
        app = small_app("/playground")
        app.add_middleware(Authentication, keys=keys("key", ""))
        app.add_middleware(RootPath, root_path="/playground")
        async with client(app) as here:
            for path in ("/v1/models", "/playground/v1/models"):
                assert (await here.get(path)).status_code == 401
                assert (await here.get(path, headers=KEY)).status_code == 200
            assert (await here.get("/playground/playground/a.js")).status_code == 200


class TestRates:
    async def test_headers(self) -> None:
        rates = Rates()
        who = Client(name="rare", requests_per_minute=2, tokens_per_minute=600)
        app = FastAPI()

        @app.post("/")
        async def use(request: Request) -> None:
            name = client_of(request).name
            rates.take(name, "requests", 1, 2, time.monotonic())
            rates.take(name, "tokens", 100.5, 600, time.monotonic())

        async def known(scope: Any, receive: Any, send: Any) -> None:
            scope["state"] = {"client": who}
            await RateHeaders(app, rates)(scope, receive, send)

        async with client(known) as here:
            headers = (await here.post("/")).headers
        assert [headers[f"x-ratelimit-{part}-requests"] for part in ("limit", "remaining")] == ["2", "1"]
        assert [headers[f"x-ratelimit-{part}-tokens"] for part in ("limit", "remaining")] == ["600", "499"]
        assert headers["x-ratelimit-reset-requests"] in ("30s", "29.99s", "29.999s", "29.998s", "29.997s")
        assert headers["x-ratelimit-reset-tokens"].startswith("10.0")

    async def test_none_where_there_is_no_limit(self) -> None:
        async def anybody(scope: Any, receive: Any, send: Any) -> None:
            scope["state"] = {"client": Client(name="anybody")}
            await RateHeaders(small_app(), Rates())(scope, receive, send)

        async with client(anybody) as here:
            assert not [name for name in (await here.get("/health")).headers if name.startswith("x-ratelimit")]

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0, "0ms"), (0.25, "250ms"), (1, "1s"), (7.66, "7.66s"), (60, "1m0s"), (83.4, "1m23s")]
    )
    def test_durations(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text
