"""Tells who is asking, and sends strangers away."""

from __future__ import annotations

from http import HTTPStatus
from typing import cast

from starlette._utils import get_route_path  # what the router goes by; a path of our own making might be another
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import error_response
from server.api.shelf import owner
from server.auth import ANYBODY, Client, Keys

# What shows nothing of anybody's and costs nothing; the rest needs a key.
OPEN_PATHS = frozenset({"", "/", "/health", "/ready", "/load", "/version", "/docs", "/openapi.json"})
OPEN_FOLDERS = ("/playground/", "/docs/assets/")
# What clients of Anthropic's protocol send instead.
KEY_HEADER = "X-Api-Key"


def client_of(request: Request) -> Client:
    """Who sent this request."""
    return cast(Client, request.state.client)


class Authentication:
    """Asks for `Authorization: Bearer KEY`, or `X-Api-Key: KEY`, where keys are configured."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            client = self._client(scope)
            if client is None:
                headers_given = Headers(scope=scope)
                given = next((name for name in ("Authorization", KEY_HEADER) if name in headers_given), None)
                message = (
                    f"{given}: this API key is not known"
                    if given
                    else f"Authorization: an API key is needed, sent as 'Bearer KEY', or the key alone as {KEY_HEADER}"
                )
                headers = {"WWW-Authenticate": "Bearer"}
                response = error_response(message, None, HTTPStatus.UNAUTHORIZED, headers)
                await response(scope, receive, send)
                return
            scope.setdefault("state", {})["client"] = client
            owner.set(client.name)  # here, in the request's first task, for all that it starts
        await self._app(scope, receive, send)

    def _client(self, scope: Scope) -> Client | None:
        path = get_route_path(scope)
        # vLLM's route of the metrics takes whatever follows its name.
        of_metrics = path.startswith("/metrics")
        needed = self._keys.required_for_metrics if of_metrics else self._keys.required and not _is_open(path, scope)
        if not needed:
            return ANYBODY
        headers = Headers(scope=scope)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if not scheme:
            scheme, key = "bearer", headers.get(KEY_HEADER, "")
        if scheme.lower() != "bearer":
            return None
        return self._keys.metrics_client(key.strip()) if of_metrics else self._keys.client(key.strip())


def _is_open(path: str, scope: Scope) -> bool:
    # A preflight request carries no key, and is answered without one.
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS) or scope["method"] == "OPTIONS"
