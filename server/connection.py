"""The HTTP connection, bounded: whatever it waits for from its client has a time, and what it reads a size.

uvicorn by itself waits without limit for headers, for bodies that nobody reads, and for a client that does not read.
The base class is uvicorn's own over h11 (0.5x), whose hooks are not documented; `tests/server/test_connection.py` fails
when they change. h11, because httptools loses the body of a request that offers an upgrade (`Upgrade: h2c`), and
uvicorn's class over it answers HTTP/1.0 in chunks.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.config.traffic import LimitsConfig

# h11 allows as much for headers, for one chunk's extension, and for trailers.
MAX_HEAD_BYTES = 32 * 1024
# What a body's chunk sizes and extensions may add to it, at least.
MIN_FRAMING_BYTES = 64 * 1024
# The app answers a late body with 408; the connection ends so much later, for the answer to be read.
ANSWER_SECONDS = 1.0

_IDLE, _HEAD = "between two requests", "headers"


class BoundedConnection(H11Protocol):
    """Closes a connection whose client sends too slowly or too much, or does not read."""

    def __init__(self, *args: Any, limits: LimitsConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._max_request_bytes = limits.max_body_bytes + max(limits.max_body_bytes, MIN_FRAMING_BYTES)
        self._request_bytes = 0
        self._awaited: object = None
        """What the read timer runs for: `_IDLE`, `_HEAD`, or the request whose body is to come."""
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected; it has so long to send its headers."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # The kernel drops a client that takes nothing for so long, also when all else of the connection is over.
            milliseconds = int(self._limits.write_timeout_s * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._cancel(self._read_timer)
        self._cancel(self._write_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read, count what belongs to one request, and see what is still to come."""
        before = self.cycle
        super().data_received(data)
        self._request_bytes = self._request_bytes + len(data) if self.cycle is before else 0
        if self.conn.their_state is h11.SEND_BODY and self._request_bytes > self._max_request_bytes:
            self.send_400_response("The request is larger than its body may be: chunks, extensions and trailers.")
        self._watch()

    def on_response_complete(self) -> None:
        """A response is sent; its request may still be coming, or the next one be here already."""
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read; where the answer has begun already, there is only the end."""
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
            if self.cycle is not None:
                # What the application may still answer has nowhere to go; uvicorn 0.54 would log a traceback for each.
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        else:
            self.transport.abort()

    def pause_writing(self) -> None:
        """The client has left so much unread that writing waits."""
        super().pause_writing()
        self._cancel(self._write_timer)
        self._write_timer = self.loop.call_later(self._limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._cancel(self._write_timer)
        super().resume_writing()

    def _should_upgrade(self) -> bool:
        """Never: a server may ignore the offer of another protocol, and answer in this one (RFC 9110, 7.8)."""
        return False

    def _watch(self) -> None:
        """Give what is to come from the client its time, once for each thing that is to come."""
        awaited: object = None
        seconds = self._limits.read_timeout_s
        if self.conn.their_state is h11.IDLE:
            awaited = _HEAD if self.conn.trailing_data[0] else _IDLE
        elif self.conn.their_state is h11.SEND_BODY:
            awaited, seconds = self.cycle, seconds + ANSWER_SECONDS
        if awaited is self._awaited:
            return
        self._cancel(self._read_timer)
        self._awaited = awaited
        self._read_timer = None if awaited is None else self.loop.call_later(seconds, self.transport.abort)

    @staticmethod
    def _cancel(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


def bounded_by(limits: LimitsConfig) -> Callable[..., BoundedConnection]:
    """What uvicorn makes its connections with."""
    return functools.partial(BoundedConnection, limits=limits)


def uvicorn_config(app: ASGIApp, limits: LimitsConfig, **settings: Any) -> uvicorn.Config:
    """How uvicorn serves `app` here: over bounded connections, without WebSockets, and without logs of its own."""
    return uvicorn.Config(
        app,
        http=bounded_by(limits),  # type: ignore[arg-type]
        ws="none",
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        log_config=None,
        access_log=False,
        **settings,
    )
