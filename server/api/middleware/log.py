"""Gives every request an id and one line in the log, which holds neither prompts nor keys."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("logit_fusion.requests")

HEADER = "x-request-id"
VALID_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestLog:
    """Passes the client's `x-request-id` on, or makes one; answers with it, and logs the request when it ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _settle_id(scope)
        status, started, first_byte = 0, time.monotonic(), 0.0

        async def send_with_id(message: Message) -> None:
            nonlocal status, first_byte
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            elif not first_byte:
                first_byte = time.monotonic()
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if logger.isEnabledFor(logging.INFO):
                now = time.monotonic()
                client = scope.get("state", {}).get("client")
                logger.info(
                    "%s %s %d",
                    scope["method"],
                    scope["path"],
                    status,
                    extra={
                        "request_id": request_id,
                        "client": client.name if client is not None else None,
                        "seconds": round(now - started, 4),
                        "first_byte_seconds": round((first_byte or now) - started, 4),
                    },
                )


def _settle_id(scope: Scope) -> str:
    """Return the request's id, and leave it in the headers, where vLLM looks for it."""
    given = Headers(scope=scope).get(HEADER, "")
    if VALID_ID.fullmatch(given):
        return given
    request_id = uuid.uuid4().hex
    headers = [(name, value) for name, value in scope["headers"] if name != HEADER.encode()]
    scope["headers"] = [*headers, (HEADER.encode(), request_id.encode())]
    return request_id
