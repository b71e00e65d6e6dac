"""Tells who is asking, and sends strangers away."""

from __future__ import annotations

from http import HTTPStatus
from typing import cast

from starlette._utils import get_route_path  # what the router goes by; a path of our own making might be another
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import error_response
from server.auth import ANYBODY, Client, Keys

# What shows nothing of anybody's and costs nothing; the rest needs a key.
OPEN_PATHS = frozenset({"", "/", "/health", "/ready", "/version", "/docs", "/docs/oauth2-redirect", "/openapi.json"})
OPEN_FOLDERS = ("/playground/",)


def client_of(request: Request) -> Client:
    """Who sent this request."""
    return cast(Client, request.state.client)


class Authentication:
    """Asks for `Authorization: Bearer KEY` where keys are configured."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            client = self._client(scope)
            if client is None:
                given = "authorization" in Headers(scope=scope)
                message = (
                    "Authorization: this API key is not known"
                    if given
                    else "Authorization: an API key is needed, sent as 'Bearer KEY'"
                )
                headers = {"WWW-Authenticate": "Bearer"}
                response = error_response(message, None, HTTPStatus.UNAUTHORIZED, headers)
                await response(scope, receive, send)
                return
            scope.setdefault("state", {})["client"] = client
        await self._app(scope, receive, send)

    def _client(self, scope: Scope) -> Client | None:
        path = get_route_path(scope)
        # vLLM's route of the metrics takes whatever follows its name.
        of_metrics = path.startswith("/metrics")
        needed = self._keys.required_for_metrics if of_metrics else self._keys.required and not _is_open(path, scope)
        if not needed:
            return ANYBODY
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        return self._keys.metrics_client(key.strip()) if of_metrics else self._keys.client(key.strip())


def _is_open(path: str, scope: Scope) -> bool:
    # A preflight request carries no key, and is answered without one.
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS) or scope["method"] == "OPTIONS"
