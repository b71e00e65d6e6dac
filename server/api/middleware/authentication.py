"""Tells who is asking, and sends strangers away."""

from __future__ import annotations

from http import HTTPStatus
from typing import cast

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import error_response
from server.api.shelf import owner
from server.auth import ANYBODY, Client, Keys

# What shows nothing of anybody's and costs nothing; the rest needs a key.
OPEN_PATHS = frozenset(
    {"/", "/health", "/ready", "/load", "/metrics", "/version", "/docs", "/docs/oauth2-redirect", "/openapi.json"}
)
OPEN_FOLDERS = ("/playground/",)
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
        if not self._keys.required:
            return ANYBODY
        # A preflight request carries no key, and is answered without one.
        if scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDERS) or scope["method"] == "OPTIONS":
            return ANYBODY
        headers = Headers(scope=scope)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if not scheme:
            scheme, key = "bearer", headers.get(KEY_HEADER, "")
        return self._keys.client(key.strip()) if scheme.lower() == "bearer" else None
