"""The time that a request may take, where vLLM's serving classes wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.exceptions import HTTPException

BUSY_RETRY_SECONDS = 5


def too_late(seconds: float) -> str:
    """What is said to a request that took longer than `seconds`."""
    return f"the request took longer than the {seconds:g} s that it may take"


@asynccontextmanager
async def within_deadline(seconds: float, until: float | None = None) -> AsyncIterator[None]:
    """Give up when `seconds` are over, at `until` of the loop's clock if that is given.

    Raises:
        HTTPException: 504 then; 503 where vLLM gave up before, because prompts before this one took too long to read.
    """
    deadline = asyncio.get_running_loop().time() + seconds if until is None else until
    try:
        async with asyncio.timeout_at(deadline) as timeout:
            yield
            if timeout.expired():  # vLLM turns the cancellation into an answer, "Client disconnected"
                raise TimeoutError
    except TimeoutError:
        if timeout.expired():
            raise HTTPException(HTTPStatus.GATEWAY_TIMEOUT, too_late(seconds)) from None
        message = f"the server is busy: the prompt could not be read in time; try again in {BUSY_RETRY_SECONDS} s"
        headers = {"Retry-After": str(BUSY_RETRY_SECONDS)}
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, message, headers) from None
