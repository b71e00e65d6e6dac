"""Streams of events that always end well: in time, with a word on what went wrong, and with their place freed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, cast

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from vllm.entrypoints.serve import create_error_response
from vllm.v1.engine.exceptions import EngineDeadError

from server.api.errors import ENGINE_DEAD, error_type

# Nothing on the way may keep an answer, nor hold its events back: nginx buffers unless it is told not to.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class ClosingStream(StreamingResponse):
    """A stream that calls `close` when it is over, however it ends."""

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None]) -> None:
        super().__init__(events, headers=HEADERS, media_type="text/event-stream")
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def until(seconds: float, deadline: float, events: AsyncIterator[str], named_events: bool) -> AsyncIterator[str]:
    """Pass `events` on until the loop's time is `deadline`, which comes `seconds` after the request's start.

    A stream that is cut off, or whose engine dies, ends with an error event: `named_events` has it in the form of the
    responses API, otherwise it is that of chat and completions.
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
        yield _error_event(ENGINE_DEAD, HTTPStatus.SERVICE_UNAVAILABLE, named_events)
    finally:
        timer.cancel()
    if late:
        message = f"the request took longer than the {seconds:g} s that it may take"
        yield _error_event(message, HTTPStatus.GATEWAY_TIMEOUT, named_events)
    if not named_events:
        yield "data: [DONE]\n\n"


def _error_event(message: str, status: HTTPStatus, named: bool) -> str:
    if named:
        body = {"type": "error", "code": error_type(status), "message": message, "param": None}
        return f"event: error\ndata: {json.dumps(body)}\n\n"
    error = create_error_response(message, err_type=error_type(status), status_code=status)
    return f"data: {error.model_dump_json()}\n\n"
