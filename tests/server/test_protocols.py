"""What clients of other protocols and versions get from the connection: an answer that they can read."""

from __future__ import annotations

import asyncio
import logging
import shutil

import pytest
from starlette.types import Receive, Scope, Send

from tests.server.raw import App, running

POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"


async def exchange(port: int, request: bytes, until: bytes = b"") -> bytes:
    """Send bytes; return what comes up to `until`, or to the connection's end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.readuntil(until) if until else reader.read(), 5)
    writer.close()
    return answer


async def two_events(scope: Scope, receive: Receive, send: Send) -> None:
    """A stream of unknown length, as an answer's events are."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for event in (b"data: 1\n\n", b"data: 2\n\n"):
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body"})


OFFERS = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Version: 13\r\n",
    b"Connection: Upgrade\r\nUpgrade: TLS/1.0, anything/2\r\n",
]


@pytest.mark.parametrize("offer", OFFERS, ids=["h2c", "websocket", "others"])
async def test_an_offered_upgrade_is_ignored(offer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with running(App()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                writer.write(POST + offer + b"\r\nhello")
                answer = await asyncio.wait_for(reader.readuntil(b"   5"), 5)
                assert answer.startswith(b"HTTP/1.1 200")
            writer.close()
    assert not caplog.records


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
async def test_curl_that_offers_http2() -> None:
    async with running(App()) as port:
        command = ["curl", "--silent", "--http2", "--data", "hello", f"http://127.0.0.1:{port}/"]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        answer, _ = await asyncio.wait_for(process.communicate(), 10)
    assert answer == b"   5"


async def test_http_1_0_gets_no_chunks() -> None:
    async with running(two_events) as port:
        answer = await exchange(port, b"GET / HTTP/1.0\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body == b"data: 1\n\ndata: 2\n\n"


async def test_http_1_1_does() -> None:
    async with running(two_events) as port:
        answer = await exchange(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"0\r\n\r\n")
    assert b"transfer-encoding: chunked" in answer.lower()


async def test_what_is_no_http_gets_a_400() -> None:
    async with running(App()) as port:
        for request in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
            assert (await exchange(port, request)).startswith(b"HTTP/1.1 400")


async def test_requests_that_come_at_once_are_answered_in_turn() -> None:
    async with running(App()) as port:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
        requests = b"".join(head % size + b"x" * size for size in range(1, 8))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(requests)
        for size in range(1, 8):
            assert (await asyncio.wait_for(reader.readuntil(b"   %d" % size), 5)).startswith(b"HTTP/1.1 200")
        writer.close()
