"""A small ASGI app under a real uvicorn with this server's connections, for raw sockets to talk to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import uvicorn
from starlette.types import Message, Receive, Scope, Send

from server.config.traffic import LimitsConfig
from server.connection import uvicorn_config

LIMITS = LimitsConfig(read_timeout_s=0.5, write_timeout_s=0.5, max_body_bytes=1000)
BIG = b"x" * 65536


class App:
    """Answers POST with the length of the body, PUT with 401 before it is read, and GET with a stream without end."""

    def __init__(self) -> None:
        self.streaming = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await self._stream(send, receive)
            return
        if scope["method"] == "PUT":
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
            return
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": f"{size:4}".encode()})

    async def _stream(self, send: Send, receive: Receive) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.streaming += 1
        gone = asyncio.ensure_future(self._disconnect(receive))
        while not gone.done():
            message: Message = {"type": "http.response.body", "body": BIG, "more_body": True}
            await asyncio.wait([asyncio.ensure_future(cast(Any, send(message))), gone], return_when="FIRST_COMPLETED")
        self.streaming -= 1

    @staticmethod
    async def _disconnect(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


@contextlib.asynccontextmanager
async def running(app: Any) -> AsyncIterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn_config(app, LIMITS, lifespan="off"))
        task = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield sock.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            await task


async def closed_after(reader: asyncio.StreamReader) -> float:
    started = time.monotonic()
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 10)
    return time.monotonic() - started
