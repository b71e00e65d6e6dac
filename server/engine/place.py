"""The engine's side of admission: what a request tells about its size, and how it waits for its place.

The engine knows nothing of who decides. Whoever does puts a `Place` into `place` before vLLM's serving classes run.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol


class Place(Protocol):
    """One request's place in the engine, perhaps not free yet."""

    taken: bool
    """Whether the request may run; nothing waits then."""

    def add(self, sequences: int, tokens: int) -> None:
        """Tell of `sequences` that may come to `tokens` in all."""

    async def wait(self) -> None:
        """Return when the place is free."""


place: ContextVar[Place | None] = ContextVar("place", default=None)
"""The place of the request that runs in this task; `None` lets it run at once."""
