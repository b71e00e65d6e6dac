"""The time that a request may take, and what else may run out of it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from starlette.exceptions import HTTPException

from server.api.deadline import within_deadline


async def test_what_takes_too_long() -> None:
    with pytest.raises(HTTPException, match="the request took longer") as caught:
        async with within_deadline(0.01):
            await asyncio.sleep(10)
    assert caught.value.status_code == 504


async def never_cancelled() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(10)


async def test_what_turns_its_cancellation_into_an_answer() -> None:
    with pytest.raises(HTTPException) as caught:
        async with within_deadline(0.01):
            await never_cancelled()
    assert caught.value.status_code == 504


async def test_a_prompt_that_could_not_be_read_in_time_is_no_fault_of_its_own() -> None:
    """As vLLM's renderer gives up on a request behind others."""
    with pytest.raises(HTTPException, match="the server is busy") as caught:
        async with within_deadline(10):
            raise TimeoutError("Chat template rendering timed out after 30s.")
    assert caught.value.status_code == 503
    assert caught.value.headers == {"Retry-After": "5"}
