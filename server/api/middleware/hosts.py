"""Answers only to names that are the server's, so that no web page reaches it by DNS rebinding.

Such a page lets its own name resolve to this machine, and is then, to its reader's browser, a page of this server. The
browser still sends the page's name in `Host`. Starlette's `TrustedHostMiddleware` does the same, but knows no IP
addresses, which no page can have rebound, and does not say in OpenAI's form what is wrong.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import error_response
from server.config.http import ANY

_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::[0-9]*)?")


class AllowedHosts:
    """Refuses names in `Host` that are neither local nor among `names`, of which `*.x` is every name below x."""

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        machine = socket.gethostname().lower()
        self._app = app
        self._names = frozenset({"localhost", machine, f"{machine}.local", *names})
        self._endings = (".localhost", *(name[1:] for name in names if name.startswith("*.")))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        # Clients of HTTP/1.0 may send none; browsers always do.
        if not host or self._is_known(_name(host)):
            await self._app(scope, receive, send)
            return
        message = f"Host: this server is not known as {host!r:.260}; its names are in its configuration, allowed_hosts"
        response = error_response(message, "Host", HTTPStatus.MISDIRECTED_REQUEST)
        await response(scope, receive, send)

    def _is_known(self, name: str) -> bool:
        return ANY in self._names or name in self._names or name.endswith(self._endings) or _is_address(name)


def _name(host: str) -> str:
    """The name in the header, without port and brackets. Its characters are not checked: no odd one is on a list."""
    parts = _HOST.fullmatch(host)
    return "" if parts is None else (parts[1] or parts[2]).lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
