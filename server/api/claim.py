"""One request's claim on the engine: a place that it waits for once, and more beside it while there is room.

A request of many sequences (prompts times choices) holds one place as every other request does. Its sequences run there
one after another, and beside it on extra tickets, one of which waits at a time: that is how it shares the engine with
requests that came after it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from fastapi import Request
from opentelemetry.propagate import extract
from pydantic import BaseModel

from server.admission import Gate, Ticket
from server.auth import Client
from server.engine.place import Seat, Text

PAUSE_SECONDS = 0.004


class Budget(Protocol):
    """What claims draw on: the engine's places, and each client's tokens."""

    gate: Gate

    def worst_case(self, request: BaseModel, body_bytes: int) -> int:
        """The most tokens that one sequence of a request can have."""

    def take_tokens(self, client: Client, tokens: float) -> None:
        """Charge them to the client's rate, or raise."""

    def give_back_tokens(self, client: Client, tokens: float) -> None:
        """Correct the charge at the end."""


class Claim:
    """The engine's `Place` of one request. Close it when all is over."""

    def __init__(self, budget: Budget, client: Client, request: BaseModel, raw_request: Request, weight: float) -> None:
        self._budget = budget
        self._client = client
        self._request = request
        self._raw_request = raw_request
        self._weight = weight
        self._sequences = 0
        self._largest = 0
        self._charged = 0.0
        """Tokens that the client's rate was charged for sequences that have not started."""
        self._entering: asyncio.Task[None] | None = None
        self._ticket: Ticket | None = None
        self._used = 0.0
        """Tokens of the sequences that ended on the request's own ticket."""
        self._own: _Seat | None = None
        """The sequence that runs on the own ticket."""
        self._asking: deque[tuple[int, asyncio.Future[_Seat]]] = deque()
        self._feeding: asyncio.Task[None] | None = None
        self._closed = False
        self._let_go: list[Callable[[], None]] = []
        self._meters: list[Callable[[Seat], None]] = []
        self.follows: object = None
        """What hears of the request for as long as it runs, also behind its answer; the engine holds it weakly."""

    def at_end(self, let_go: Callable[[], None]) -> None:
        """Call `let_go` when all is over."""
        self._let_go.append(let_go)

    def meter(self, meter: Callable[[Seat], None]) -> None:
        """Call `meter` with the seat of each sequence that is over."""
        self._meters.append(meter)

    def weigh(self, weight: float) -> None:
        """Say what a token costs, before `wait`: what members read is known late."""
        self._weight = max(self._weight, weight)

    def add(self, sequences: int, tokens: int) -> None:
        """Tell beforehand of `sequences` that may come to `tokens` each."""
        if self._ticket is None:
            self._sequences += sequences
            self._largest = max(self._largest, tokens)
            self._charged += sequences * tokens

    async def wait(self) -> None:
        """Return when the request's place is free; its prompts wait together, until it is closed.

        Raises:
            AdmissionError: it does not become free.
        """
        if self._closed:
            raise asyncio.CancelledError
        if self._entering is None:
            self._entering = asyncio.create_task(self._enter())
        await asyncio.shield(self._entering)

    async def _enter(self) -> None:
        if not self._sequences:
            # vLLM's responses API asks the engine only once its events are read.
            length = len(await self._raw_request.body())
            self.add(1, self._budget.worst_case(self._request, length))
        charge, self._charged = self._charged, 0.0
        self._budget.take_tokens(self._client, charge)
        self._charged = charge
        ticket = self._make_ticket(self._largest, extra=False)
        await self._budget.gate.enter(ticket, extract(self._raw_request.headers))
        self._ticket = ticket

    async def seat(self, tokens: int) -> _Seat:
        """Return when one sequence of up to `tokens` may run: in the request's place, or beside it.

        Raises:
            AdmissionError: the request's place does not become free.
        """
        await self.wait()
        if self._own is None:
            self._own = self._start(tokens, None)
            return self._own
        asking: asyncio.Future[_Seat] = asyncio.get_running_loop().create_future()
        self._asking.append((tokens, asking))
        if self._feeding is None or self._feeding.done():
            self._feeding = asyncio.create_task(self._feed())
        try:
            return await asking
        except asyncio.CancelledError:
            if asking.done() and not asking.cancelled():
                asking.result().leave()
            raise

    async def _feed(self) -> None:
        """Find places beside the request's own for as long as sequences wait for one."""
        while self._next_asking() is not None:
            await _pause()
            if self._next_asking() is None:
                return
            ticket = self._make_ticket(self._asking[0][0], extra=True)
            await self._budget.gate.enter(ticket)
            if self._hand_on(ticket) is None:
                self._budget.gate.leave(ticket, 0.0)

    def _hand_on(self, ticket: Ticket | None) -> _Seat | None:
        """Give a place to the sequence that waits longest: an extra one, or (`None`) the request's own."""
        asking = self._next_asking()
        if asking is None:
            return None
        tokens, _ = self._asking.popleft()
        seat = self._start(tokens, ticket)
        asking.set_result(seat)
        return seat

    def _next_asking(self) -> asyncio.Future[_Seat] | None:
        while self._asking and self._asking[0][1].done():  # its sequence was given up
            self._asking.popleft()
        return self._asking[0][1] if self._asking else None

    def _start(self, tokens: int, ticket: Ticket | None) -> _Seat:
        self._charged = max(0.0, self._charged - tokens)
        return _Seat(self, tokens, ticket)

    def end(self, seat: _Seat) -> None:
        """One sequence is over: correct what it was charged, and hand its place on."""
        self._budget.give_back_tokens(self._client, max(0, seat.tokens - seat.charge))
        for meter in self._meters:
            meter(seat)
        if seat.ticket is not None:
            self._budget.gate.leave(seat.ticket, seat.charge * self._weight)
        else:
            self._used += seat.charge
            self._own = self._hand_on(None)

    def close(self) -> None:
        """Free the place, and give back what the client was charged for sequences that never started."""
        self._closed = True
        while self._let_go:
            self._let_go.pop(0)()
        for task in (self._entering, self._feeding):
            if task is not None:
                task.cancel()
        for _, future in self._asking:
            future.cancel()
        if self._ticket is not None:
            running = self._own.charge if self._own is not None else 0
            self._budget.gate.leave(self._ticket, (self._used + running) * self._weight)
        self._budget.give_back_tokens(self._client, self._charged)
        self._charged = 0.0

    def _make_ticket(self, tokens: int, extra: bool) -> Ticket:
        client = self._client
        priority: Any = getattr(self._request, "priority", None)
        return Ticket(
            client=client.name,
            weight=client.weight,
            priority=max(client.priority, priority or 0),
            tokens=tokens * self._weight,
            wide=self._sequences > 1,
            extra=extra,
        )


async def _pause() -> None:
    """Leave the event loop to others for four times as long as it is late: a sequence takes a millisecond of it."""
    clock = asyncio.get_running_loop().time
    due = clock() + PAUSE_SECONDS
    await asyncio.sleep(PAUSE_SECONDS)
    await asyncio.sleep(4 * max(0.0, clock() - due))


class _Seat:
    """What one running sequence holds: the request's own place, or an extra one (`ticket`)."""

    def __init__(self, claim: Claim, tokens: int, ticket: Ticket | None) -> None:
        self.read = self.prompt = 0
        self.generated: int | None = None
        self.finish_reason: str | None = None
        self.text: Text | None = None
        self.tokens = tokens
        self.ticket = ticket
        self._claim = claim
        self._left = False

    @property
    def charge(self) -> int:
        """Tokens that its client pays for: all that were asked for, where nothing is known of what came of it."""
        return self.tokens if self.generated is None else self.read + self.generated

    def leave(self) -> None:
        """The sequence has ended."""
        if not self._left:
            self._left = True
            self._claim.end(self)
