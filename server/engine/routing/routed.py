"""What routers chose for the prompts of one HTTP request, as its answers begin."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from vllm import RequestOutput

from server.engine.routing.choosing import Choice


@dataclass(eq=False)
class Routed:
    """One HTTP request that is routed. The engine tells it what was chosen for as long as somebody holds it."""

    classes: Sequence[str]
    """Of its router."""
    heard: Callable[[Choice], None]
    """Hears what was chosen for each of its prompts."""
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    chosen: dict[int, Choice] = field(default_factory=dict)
    """By the index of the answer's choice (prompt index x n + choice, as the API counts them)."""
    expected: int = 0
    """How many choices the answer will have."""


async def told(
    outputs: AsyncGenerator[RequestOutput, None],
    routed: Routed,
    choices: range,
    ask: Callable[[], Awaitable[Choice | None]],
) -> AsyncGenerator[RequestOutput, None]:
    """The outputs of one prompt; what was chosen for its `choices` is known before the first of them."""
    async with aclosing(outputs):
        async for output in outputs:
            if choices[0] not in routed.chosen and any(choice.token_ids for choice in output.outputs):
                found = await ask()
                if found is not None:
                    routed.chosen |= dict.fromkeys(choices, found)
                    routed.heard(found)
            yield output
