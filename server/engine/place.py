"""The engine's side of admission: what a request tells about its size, and how each of its sequences waits for a place.

The engine knows nothing of who decides. Whoever does puts a `Place` into `place` before vLLM's serving classes run.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple, Protocol


class Text(NamedTuple):
    """What one sequence read and wrote, as token ids."""

    prompt: list[int]
    answer: list[int]


class Seat(Protocol):
    """What one running sequence holds."""

    read: int
    """Tokens of all prompts that its members read."""
    prompt: int
    """Those of the request's prompt; 0 where another sequence of the same prompt counts them."""
    generated: int | None
    """Tokens of its output so far; `None` where nothing came of it yet."""
    finish_reason: str | None
    """Why it ended, in vLLM's word; `None` where it did not by itself."""
    text: Text | None
    """What it read and wrote, once it has come to its own end."""

    def leave(self) -> None:
        """The sequence has ended; harmless the second time."""


class Place(Protocol):
    """One request's place in the engine, perhaps not free yet."""

    def add(self, sequences: int, tokens: int) -> None:
        """Tell beforehand of `sequences` that may come to `tokens` each."""

    async def seat(self, tokens: int) -> Seat:
        """Return when one sequence that may come to `tokens` may run; it must `leave`."""


place: ContextVar[Place | None] = ContextVar("place", default=None)
"""The place of the request that runs in this task; `None` lets it run at once."""
