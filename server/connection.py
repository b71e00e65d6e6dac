"""The HTTP connection, bounded: uvicorn by itself waits without limit for headers, and for a client that does not read.

The base class is uvicorn's own (0.5x), whose hooks are not documented; `tests/server/test_connection.py` fails when
they change.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.config.traffic import LimitsConfig

MAX_HEAD_BYTES = 32 * 1024


class BoundedConnection(HttpToolsProtocol):
    """Closes a connection whose headers are too large or too slow, or whose client does not read."""

    def __init__(self, *args: Any, limits: LimitsConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._head_bytes: int | None = 0
        """Bytes of the headers so far; `None` from their end to the next request."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected; it has so long to send its headers."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self._limits.read_timeout_s, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._cancel(self._head_timer)
        self._cancel(self._write_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what may belong to headers; a chunk that ends them may be large, as it holds the body's start."""
        super().data_received(data)
        if self._head_bytes is None:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The request's headers are larger than {MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        """Headers begin: the first ones of the connection, or the next ones of one that is kept alive."""
        self._head_bytes = 0
        self._cancel(self._head_timer)
        self._head_timer = self.loop.call_later(self._limits.read_timeout_s, self.transport.abort)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """All headers are here."""
        self._head_bytes = None
        self._cancel(self._head_timer)
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """The client has left so much unread that writing waits."""
        super().pause_writing()
        self._cancel(self._write_timer)
        self._write_timer = self.loop.call_later(self._limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._cancel(self._write_timer)
        super().resume_writing()

    @staticmethod
    def _cancel(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


def bounded_by(limits: LimitsConfig) -> Callable[..., BoundedConnection]:
    """What uvicorn makes its connections with."""
    return functools.partial(BoundedConnection, limits=limits)
