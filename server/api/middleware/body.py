"""Bounds what a request's body may cost before anything reads it: its size, its structure and its time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import FieldError
from server.api.middleware.surrogates import lone_surrogate
from server.config.traffic import LimitsConfig

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


class BodyLimits:
    """Refuses bodies that are too large (413), too deep or too finely divided (400), or too slow (408)."""

    def __init__(self, app: ASGIApp, limits: LimitsConfig) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limits = self._limits
        declared = Headers(scope=scope).get("content-length", "")
        too_large = declared.isdecimal() and (len(declared) > 18 or int(declared) > limits.max_body_bytes)
        deadline = asyncio.get_running_loop().time() + limits.read_timeout_s
        chunks: list[bytes] | None = []
        size = 0

        async def receive_within_limits() -> Message:
            nonlocal chunks, size
            if chunks is None:  # the body is complete; what comes now is the disconnect
                return await receive()
            if too_large:
                raise self._too_large()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                seconds = f"{limits.read_timeout_s:g} s"
                raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, f"body: it did not arrive within {seconds}") from None
            if message["type"] == "http.request":
                body = message.get("body", b"")
                size += len(body)
                if size > limits.max_body_bytes:
                    raise self._too_large()
                chunks.append(body)
                if not message.get("more_body", False):
                    self._check_structure(b"".join(chunks))
                    chunks = None
            return message

        await self._app(scope, receive_within_limits, send)

    def _check_structure(self, body: bytes) -> None:
        """Reading many small values takes seconds, in which nobody else is served."""
        objects, depth = self._limits.max_json_objects, self._limits.max_json_depth
        if more_than(objects, body):
            detail = f"body: its JSON holds more than {objects:,} objects and lists"
        elif deeper_than(depth, body):
            detail = f"body: its JSON is nested deeper than {depth} levels"
        elif (field_path := lone_surrogate(body)) is not None:
            raise FieldError(
                f"{field_path}: it holds half a character (a lone surrogate), which is no text", field_path
            )
        else:
            return
        raise FieldError(detail, "body")

    def _too_large(self) -> HTTPException:
        limit = self._limits.max_body_bytes
        return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body: it is larger than {limit:,} bytes")


def more_than(limit: int, body: bytes) -> bool:
    """Whether what may be JSON holds more than `limit` objects and lists."""

    def openings(text: bytes) -> int:
        return text.count(b"{") + text.count(b"[")

    return openings(body) > limit and openings(_STRING.sub(b"", body)) > limit


def deeper_than(limit: int, body: bytes) -> bool:
    """Whether brackets and braces are nested deeper than `limit` in what may be JSON."""
    if body.count(b"{") + body.count(b"[") <= limit:
        return False
    depth = 0
    for bracket in _brackets(body):
        depth += 1 if bracket in (b"{", b"[") else -1
        if depth > limit:
            return True
    return False


def _brackets(body: bytes) -> Iterable[bytes]:
    return (match[0] for match in _STRING_OR_BRACKET.finditer(body) if len(match[0]) == 1)
