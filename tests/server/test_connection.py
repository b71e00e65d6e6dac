"""The bounded connection under a real uvicorn, with raw sockets for clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from server.api.middleware.body import BodyLimits, deeper_than
from server.config.traffic import LimitsConfig
from server.connection import bounded_by

LIMITS = LimitsConfig(read_timeout_s=0.5, write_timeout_s=0.5, max_body_bytes=1000)
BIG = b"x" * 65536


class App:
    """Answers POST with the length of the body, and GET with a stream without end."""

    def __init__(self) -> None:
        self.streaming = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await self._stream(send, receive)
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
        config = uvicorn.Config(app, http=cast(Any, bounded_by(LIMITS)), lifespan="off", log_config=None)
        server = uvicorn.Server(config)
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


@pytest.mark.parametrize("sent", [b"", b"GET", b"POST / HTTP/1.1\r\nHost: a\r\nX-Slow: "])
async def test_headers_that_do_not_come(sent: bytes) -> None:
    async with running(App()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert 0.2 < await closed_after(reader) < 5
        writer.close()


async def test_the_next_headers_of_a_kept_connection_have_their_own_time() -> None:
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"
    async with running(App()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(request)
            assert (await reader.readuntil(b"   2")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.3)
        writer.write(request[:20])
        assert 0.2 < await closed_after(reader) < 5
        writer.close()


async def test_headers_without_end() -> None:
    async with running(App()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                writer.write(b"X-More: " + b"a" * 1000 + b"\r\n")
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            assert b"400" in await reader.readline()
        writer.close()


async def test_a_client_that_does_not_read_is_dropped() -> None:
    app = App()
    async with running(app) as port:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", port))
            slow.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            while not app.streaming:
                await asyncio.sleep(0.01)
            deadline = time.monotonic() + 10
            while app.streaming and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            assert not app.streaming


async def test_a_client_that_reads_slowly_is_kept() -> None:
    app = App()
    async with running(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        started = time.monotonic()
        while time.monotonic() - started < 1.5:
            assert await reader.read(400_000)
            await asyncio.sleep(0.01)
        assert app.streaming
        writer.close()


class TestDepth:
    @pytest.mark.parametrize("depth", [1, 64])
    def test_allowed(self, depth: int) -> None:
        assert not deeper_than(64, b"[" * depth + b"]" * depth)
        assert not deeper_than(64, b'{"a":' * depth + b"1" + b"}" * depth)

    def test_too_deep(self) -> None:
        assert deeper_than(64, b"[" * 65)
        assert deeper_than(64, b'{"a":[' * 33)

    def test_breadth_and_strings_are_not_depth(self) -> None:
        assert not deeper_than(64, b"[" + b"[],{}," * 1000 + b"1]")
        assert not deeper_than(2, b'{"a": "[[[[[\\"[[[[", "b": "{{{{"}')
        assert deeper_than(2, b'{"a\\\\": [[1]], "b": "c"}')


async def test_body_limits_need_no_content_length() -> None:
    async with running(BodyLimits(App(), LIMITS)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            writer.write(b"200\r\n" + b"x" * 512 + b"\r\n")
        # No app stands between that would say 413; it is enough that the body is not taken.
        assert b"500" in await reader.readline()
        writer.close()
