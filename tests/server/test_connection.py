"""The bounded connection under a real uvicorn, with raw sockets for clients: in every state it comes to an end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest
from starlette.types import Receive, Scope, Send

from server.api.middleware.body import BodyLimits, deeper_than
from tests.server.raw import LIMITS, App, closed_after, running

# More than the kernel's buffers hold on the way.
FAR_TOO_MUCH = 10_000_000


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


class TestBodiesThatNobodyReads:
    """The app has answered; the rest of the request has its time and its size all the same."""

    async def test_dripped(self) -> None:
        async with running(App()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
            assert b"401" in await reader.readline()
            drip = asyncio.create_task(self._drip(writer, b"x"))
            assert 1.0 < await closed_after(reader) < 5
            drip.cancel()
            writer.close()

    async def test_without_end(self) -> None:
        async with running(App()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert b"401" in await reader.readline()
            started = time.monotonic()
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - started < 5:
                    writer.write(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
                    await writer.drain()
            assert time.monotonic() - started < 1.0, "its time ended it, not its size"
            writer.close()

    async def test_that_comes_after_all_leaves_a_connection_that_ends_too(self) -> None:
        """uvicorn itself sets no time for the next request when a body comes after the answer."""
        async with running(App()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                writer.write(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
                assert b"401" in await reader.readuntil(b"\r\n\r\n")
                writer.write(b"abc")
            assert await closed_after(reader) < 5
            writer.close()

    @staticmethod
    async def _drip(writer: asyncio.StreamWriter, piece: bytes) -> None:
        while True:
            writer.write(piece)
            await asyncio.sleep(0.05)


class TestFraming:
    """What is not body counts as well."""

    HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

    @pytest.mark.parametrize(
        "piece",
        [
            pytest.param(b"1;" + b"e" * 1000 + b"\r\nx\r\n", id="many extensions"),
            pytest.param(b"e" * 1000, id="one extension without end"),
            pytest.param(b"1\r\nx\r\n", id="small chunks"),
        ],
    )
    async def test_that_has_no_end(self, piece: bytes) -> None:
        start = b"1;" if piece.startswith(b"e") else b""
        assert await self._sent_until_refused(start, piece) < FAR_TOO_MUCH

    async def test_trailers_that_have_no_end(self) -> None:
        assert await self._sent_until_refused(b"1\r\nx\r\n0\r\n", b"X-T: " + b"t" * 1000 + b"\r\n") < FAR_TOO_MUCH

    async def test_what_the_application_would_answer_is_dropped(self, caplog: pytest.LogCaptureFixture) -> None:
        async with running(App()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(self.HEAD.replace(b"POST", b"PUT") + b"no size\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 400")
            writer.close()
        assert "Exception" not in caplog.text

    async def test_some_is_allowed(self) -> None:
        async with running(App()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            chunks = (b"2;name=value\r\nab\r\n") * 100
            writer.write(self.HEAD + chunks + b"0\r\nX-Trailer: a\r\n\r\n")
            assert (await reader.readuntil(b" 200")).startswith(b"HTTP/1.1 200")
            writer.close()

    async def _sent_until_refused(self, start: bytes, piece: bytes) -> int:
        async with running(App()) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(self.HEAD + start)
            sent, started, batch = 0, time.monotonic(), piece * (10_000 // len(piece))
            with contextlib.suppress(ConnectionError):
                while sent < 2 * FAR_TOO_MUCH:
                    writer.write(batch)
                    await writer.drain()
                    sent += len(batch)
            assert time.monotonic() - started < 5
            writer.close()
            return sent


async def test_the_kernel_drops_a_client_that_takes_nothing_of_a_finished_answer() -> None:
    """What is left when all else is over is too little for the write timer, which goes by a full buffer."""
    gone = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b"x" * 3_000_000, "more_body": True})
        await send({"type": "http.response.body", "body": b"x" * 1000})
        gone.set()

    async with running(app) as port:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", port))
            slow.setblocking(False)
            slow.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await asyncio.wait_for(gone.wait(), 10)
            await asyncio.sleep(3)
            received = b"something"
            with contextlib.suppress(ConnectionError):
                while received:
                    received = await asyncio.get_running_loop().sock_recv(slow, 65536)
            assert received, "the answer came whole"
