"""Streams of events that always end well: in time, with a word on what went wrong, and with their place freed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, NamedTuple, cast

from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send
from vllm.entrypoints.serve import create_error_response
from vllm.v1.engine.exceptions import EngineDeadError

from server.admission import AdmissionError
from server.api.deadline import too_late
from server.api.errors import ENGINE_DEAD, admission_status, anthropic_error, error_type

# Clients pass over comments, and proxies see that the connection lives.
COMMENT = b": keep-alive\n\n"

# Nothing on the way may keep an answer, nor hold its events back: nginx buffers unless it is told not to.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class ClosingStream(StreamingResponse):
    """A stream that calls `close` when it is over, however it ends, and is never silent for `keep_alive_s`."""

    def __init__(
        self,
        events: AsyncIterator[str],
        close: Callable[[], None],
        keep_alive_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(events, headers={**HEADERS, **(headers or {})}, media_type="text/event-stream")
        self._close = close
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        loop = asyncio.get_running_loop()
        sending, last = True, loop.time()

        async def send_and_note(message: Message) -> None:
            nonlocal sending, last
            sending = True
            await send(message)
            last = loop.time()
            # After the last message nothing may follow.
            sending = message["type"] == "http.response.body" and not message.get("more_body", False)

        async def comment() -> None:
            while True:
                await asyncio.sleep(last + self._keep_alive_s - loop.time())
                if not sending and loop.time() - last >= self._keep_alive_s:
                    await send_and_note({"type": "http.response.body", "body": COMMENT, "more_body": True})
                elif sending:
                    await asyncio.sleep(self._keep_alive_s)

        commenting = asyncio.create_task(comment())
        try:
            await super().__call__(scope, receive, send_and_note)
        finally:
            commenting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await commenting
            self._close()


async def placed(wait: Callable[[], Awaitable[None]], events: AsyncIterator[str], waiting: bool) -> AsyncIterator[str]:
    """The events of a stream, which are not asked for before `wait` returns; a comment first if it is `waiting`."""
    async with aclosing(cast(Any, events)):
        if waiting:
            yield COMMENT.decode()
        await wait()
        async for event in events:
            yield event


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
    except AdmissionError as error:
        yield protocol.error_event(str(error), admission_status(error))
    finally:
        timer.cancel()
    if late:
        yield protocol.error_event(too_late(seconds), HTTPStatus.GATEWAY_TIMEOUT)
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
