"""Errors under `/v1/messages` as clients of Anthropic's protocol read them, wherever in the server they come from."""

from __future__ import annotations

import json
from http import HTTPStatus

from starlette._utils import get_route_path  # what the router goes by
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import anthropic_error
from server.api.middleware.log import HEADER

PATH = "/v1/messages"


class AnthropicErrors:
    """Rewrites the JSON of every error answer, and names the request in Anthropic's header too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not get_route_path(scope).startswith(PATH):
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get(HEADER, "")
        start: Message | None = None
        body = b""

        async def send_in_its_form(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["request-id"] = request_id
                if message["status"] >= HTTPStatus.BAD_REQUEST:
                    start = message
                    return
            if start is None:
                await send(message)
                return
            body += message.get("body", b"")
            if message.get("more_body", False):
                return
            rewritten = _rewritten(body, HTTPStatus(start["status"]), request_id)
            MutableHeaders(scope=start)["content-length"] = str(len(rewritten))
            await send(start)
            await send({"type": "http.response.body", "body": rewritten})

        await self._app(scope, receive, send_in_its_form)


def _rewritten(body: bytes, status: HTTPStatus, request_id: str) -> bytes:
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace") or status.phrase
    return json.dumps(anthropic_error(message, status) | {"request_id": request_id}).encode()
