"""Brings a request's line into the form in which the routes know it."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send


class RequestLine:
    """Lets `HEAD` ask every route that has `GET`, and reads a target that is a whole URL.

    FastAPI's routes do not take `HEAD` by themselves; uvicorn sends no body for it. Clients that were told that the
    server is their proxy ask for `GET http://host/path`, which every server must accept (RFC 9112, 3.2.2).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            changes: dict[str, Any] = {}
            if scope["method"] == "HEAD":
                changes["method"] = "GET"
            if scope["path"].startswith(("http://", "https://")):
                changes["path"] = "/" + "".join(scope["path"].split("/", 3)[3:])
                changes["raw_path"] = b"/" + b"".join(scope["raw_path"].split(b"/", 3)[3:])
            scope = {**scope, **changes} if changes else scope
        await self._app(scope, receive, send)


class RootPath:
    """Puts the path under which a proxy shows the server in front again, where the proxy has taken it off.

    A path that holds it is what ASGI asks for, and what Starlette makes links and redirects from.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        root = self._root_path
        if scope["type"] == "http" and scope["path"] != root and not scope["path"].startswith(root + "/"):
            scope = {**scope, "path": root + scope["path"], "raw_path": root.encode() + scope["raw_path"]}
        await self._app(scope, receive, send)
