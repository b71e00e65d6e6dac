"""Streams of events that always end well: in time, with a word on what went wrong, and with their place freed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, NamedTuple, cast

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from vllm.entrypoints.serve import create_error_response
from vllm.v1.engine.exceptions import EngineDeadError

from server.api.errors import ENGINE_DEAD, anthropic_error, error_type


class ClosingStream(StreamingResponse):
    """A stream that calls `close` when it is over, however it ends."""

    def __init__(
        self, events: AsyncIterator[str], close: Callable[[], None], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


class Protocol(NamedTuple):
    """How a protocol's streams end."""

    error_event: Callable[[str, HTTPStatus], str]
    """The event that says what went wrong."""
    last: str = ""
    """What follows the last event."""


async def until(seconds: float, deadline: float, events: AsyncIterator[str], protocol: Protocol) -> AsyncIterator[str]:
    """Pass `events` on until the loop's time is `deadline`, which comes `seconds` after the request's start.

    A stream that is cut off, or whose engine dies, ends with an error event of its protocol.
    """
    task = asyncio.current_task()
    assert task is not None
    waiting = late = False

    def cut() -> None:
        nonlocal late
        late = True
        if waiting:  # while an event is being sent there is nothing of ours to interrupt
            task.cancel()

    timer = asyncio.get_running_loop().call_at(deadline, cut)
    try:
        # vLLM's are generators; closing one aborts its request.
        async with aclosing(cast(Any, events)):
            while not late:
                waiting = True
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    return
                finally:
                    waiting = False
                yield event
    except asyncio.CancelledError:
        if not late:
            raise
        task.uncancel()
    except EngineDeadError:
        yield protocol.error_event(ENGINE_DEAD, HTTPStatus.SERVICE_UNAVAILABLE)
    finally:
        timer.cancel()
    if late:
        message = f"the request took longer than the {seconds:g} s that it may take"
        yield protocol.error_event(message, HTTPStatus.GATEWAY_TIMEOUT)
    if protocol.last:
        yield protocol.last


def _chat_error(message: str, status: HTTPStatus) -> str:
    error = create_error_response(message, err_type=error_type(status), status_code=status)
    return f"data: {error.model_dump_json()}\n\n"


def _responses_error(message: str, status: HTTPStatus) -> str:
    body = {"type": "error", "code": error_type(status), "message": message, "param": None}
    return f"event: error\ndata: {json.dumps(body)}\n\n"


def _messages_error(message: str, status: HTTPStatus) -> str:
    return f"event: error\ndata: {json.dumps(anthropic_error(message, status))}\n\n"


CHAT = Protocol(_chat_error, "data: [DONE]\n\n")
"""Chat and completions."""
RESPONSES = Protocol(_responses_error)
MESSAGES = Protocol(_messages_error)
"""Anthropic's."""
