"""A stream that takes too long ends with an error of its own protocol, and with nothing after it that is another's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.api.stream import CHAT, MESSAGES, RESPONSES, Protocol, until


async def slow() -> AsyncIterator[str]:
    yield "first\n\n"
    await asyncio.sleep(60)


def data(event: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(event.partition("data: ")[2])
    return fields


@pytest.mark.parametrize("protocol", [CHAT, RESPONSES, MESSAGES], ids=["chat", "responses", "messages"])
async def test_the_end_of_a_late_stream(protocol: Protocol) -> None:
    deadline = asyncio.get_running_loop().time() + 0.05
    first, error, *rest = [event async for event in until(0.05, deadline, slow(), protocol)]
    assert first == "first\n\n"
    assert "took longer than the 0.05 s" in error
    if protocol is CHAT:
        assert rest == ["data: [DONE]\n\n"]
        assert data(error)["error"]["code"] == 504
        return
    assert rest == []
    assert error.startswith("event: error\ndata: ")
    assert data(error)["type"] == "error"
    if protocol is MESSAGES:
        assert data(error)["error"]["type"] == "timeout_error"
