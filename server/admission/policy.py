"""The admission policy: a queue in front of the engine, without clocks, tasks or sockets of its own.

The contract, for one engine that many clients share:

1. Budget. At most `max_running` tickets run, one for each sequence, with at most `max_running_tokens` weighted tokens.
   A larger one runs alone.
2. Order. Lower `priority` first; a ticket gains one priority for every `aging_s` seconds that it waits, until it is as
   urgent as the most urgent that waits, so none starves. Within a priority, weighted fair queueing: of the clients
   that wait, the one that got the fewest tokens for its weight. Within a client, first come, first served. Nothing
   overtakes the ticket in front, also when a smaller one would fit.
3. Reserve. Where several clients came within the last minute, the last eighth of the places is kept for clients
   that have nothing running, so that a flood from one does not make another wait for one of the flood's requests to
   end. Tickets that find only the reserve left stand aside for those that may have it.
4. Bound. At most `max_queued` tickets wait. A newcomer to a full queue pushes out the newest ticket of the client that
   fills it most for its weight; the newcomer itself is refused if that is its own client.
5. Patience. A ticket that waited `queue_timeout_s` is refused.
6. Width. A request of many sequences has one ticket as every other, on which they run one after another, and an
   `extra` ticket for each that runs beside. Extras wait as long as the request does, in no queue's count, and within a
   client come after everything else. They leave the last eighth of the places (one at least) and of the tokens to
   whoever comes next, and hold half of all at most where requests of a single sequence run or came within the last
   minute.

Fair queueing is start-time fair queueing (Goyal, Vin, Cheng; SIGCOMM 1996), with a client's account corrected to the
tokens that its request really used when it ends, as virtual token counters do (Sheng et al., OSDI 2024).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count

RESERVED_SHARE = 8
RESERVE_SECONDS = 60.0
EXTRAS_SHARE_BESIDE_OTHERS = 0.5
# Ends of requests that the drain rate is measured over.
_RATE_ENDS = 256
_RATE_SECONDS = 60.0
MAX_RETRY_SECONDS = 60


class Reason(StrEnum):
    """Why a request was refused; the values of a metric's label."""

    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    RATE_LIMIT = "rate_limit"
    DRAINING = "draining"


class AdmissionError(Exception):
    """A request that may not come in now; `retry_after` in seconds, `None` where trying again is no use."""

    def __init__(self, reason: Reason, message: str, retry_after: int | None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after


@dataclass(slots=True, eq=False)
class Ticket:
    """The claim of one sequence to a place: of a request, or (`extra`) of one more of its sequences."""

    client: str
    weight: float = 1.0
    priority: int = 0
    tokens: float = 0.0
    """Prompt plus `max_tokens`, times the weight of the members that the sequence runs."""
    wide: bool = False
    """Whether its request has more than this one sequence."""
    extra: bool = False
    """Whether it is for one of those that run beside the first; it is wide then too."""
    arrived: float = 0.0
    number: int = field(default_factory=count().__next__)


class Policy:
    """The queue and the budget. Every method takes the time `now`, in seconds of any monotonic clock."""

    def __init__(
        self,
        max_running: int,
        max_running_tokens: float,
        max_queued: int,
        queue_timeout_s: float,
        aging_s: float,
    ) -> None:
        self.max_running = max_running
        self.max_running_tokens = max_running_tokens
        self.max_queued = max_queued
        self.queue_timeout_s = queue_timeout_s
        self.aging_s = aging_s
        self.waiting: dict[Ticket, None] = {}
        self.waiting_extras: dict[Ticket, None] = {}
        self.running: dict[Ticket, None] = {}
        self.running_tokens = 0.0
        self._running_extras = 0
        self._running_extra_tokens = 0.0
        self._running_narrow = 0
        self._narrow_seen = -math.inf
        """When the last ticket of a request of a single sequence came."""
        self._running_of: Counter[str] = Counter()
        self._queued_of: Counter[str] = Counter()
        self._seen: dict[str, float] = {}
        """By client, when its last ticket came; clients of more than a minute ago are forgotten."""
        self._virtual_time = 0.0
        self._finish: dict[str, float] = {}
        """By client, the virtual time up to which it has been served."""
        self._ends: deque[float] = deque(maxlen=_RATE_ENDS)

    def has_room(self, client: str, weight: float) -> bool:
        """Whether a ticket of `client` would be taken into the queue now."""
        if len(self.waiting) < self.max_queued or not self.waiting:
            return True
        return self._fuller_client(client, weight) is not None

    def enter(self, ticket: Ticket, now: float) -> Ticket | None:
        """Take a ticket into the queue; return the one that it pushed out, if any.

        Raises:
            AdmissionError: the queue is full.
        """
        self._seen[ticket.client] = now
        pushed_out = None
        if ticket.extra:
            ticket.arrived = now
            self.waiting_extras[ticket] = None
            return None
        if not ticket.wide:
            self._narrow_seen = now
        # A ticket that will be admitted at once does not need room in the queue.
        if len(self.waiting) >= self.max_queued and (self.waiting or not self._fits(ticket, now)):
            fuller = self._fuller_client(ticket.client, ticket.weight)
            if fuller is None:
                raise self.refusal(Reason.QUEUE_FULL, now)
            pushed_out = next(waiting for waiting in reversed(self.waiting) if waiting.client == fuller)
            self._drop(pushed_out)
        ticket.arrived = now
        self.waiting[ticket] = None
        self._queued_of[ticket.client] += 1
        return pushed_out

    def admit(self, now: float) -> list[Ticket]:
        """Move every ticket that fits from the queue into the engine, in order, and return them."""
        self._seen = {client: at for client, at in self._seen.items() if now - at <= RESERVE_SECONDS}
        admitted = []
        while waiting := (*self.waiting, *self.waiting_extras):
            most_urgent = min(ticket.priority for ticket in waiting)
            ticket = min(waiting, key=lambda ticket: self._queue_order(ticket, most_urgent, now))
            if not self._fits(ticket, now):
                break
            self._start(ticket)
            admitted.append(ticket)
        return admitted

    def leave(self, ticket: Ticket, now: float, used_tokens: float | None = None) -> None:
        """Forget a ticket, waiting or running; `used_tokens` (weighted) corrects what its client is charged."""
        if ticket in self.waiting or ticket in self.waiting_extras:
            self._drop(ticket)
        elif ticket in self.running:
            del self.running[ticket]
            self._hold(ticket, -1)
            if not ticket.extra:
                self._ends.append(now)
            if used_tokens is not None and ticket.client in self._finish:
                self._finish[ticket.client] -= (ticket.tokens - used_tokens) / ticket.weight
        if not self.running:
            self.running_tokens = self._running_extra_tokens = 0.0  # no rounding error outlives an idle moment
        self._forget_idle()

    def expire(self, now: float) -> list[Ticket]:
        """Remove and return the tickets whose patience ended."""
        late = [ticket for ticket in self.waiting if now - ticket.arrived >= self.queue_timeout_s]
        for ticket in late:
            self._drop(ticket)
        return late

    def next_expiry(self) -> float | None:
        """When the next waiting ticket's patience ends."""
        first = next(iter(self.waiting), None)
        return None if first is None else first.arrived + self.queue_timeout_s

    def refusal(self, reason: Reason, now: float) -> AdmissionError:
        """The refusal that a client gets for `reason`."""
        retry_after = self.retry_after(now)
        if reason is Reason.QUEUE_TIMEOUT:
            message = f"no place became free within {self.queue_timeout_s:g} s"
        else:
            message = f"{len(self.waiting)} requests are waiting already, which is all that may"
        return AdmissionError(reason, f"the server is busy: {message}; try again in {retry_after} s", retry_after)

    def retry_after(self, now: float) -> int:
        """Seconds until the present queue has drained, at the rate at which requests ended lately; at least 1."""
        recent = [end for end in self._ends if now - end <= _RATE_SECONDS]
        if len(recent) < 2 or now <= recent[0]:
            return min(math.ceil(self.queue_timeout_s), MAX_RETRY_SECONDS)
        rate = len(recent) / (now - recent[0])
        return max(1, min(math.ceil((len(self.waiting) + 1) / rate), MAX_RETRY_SECONDS))

    def _queue_order(self, ticket: Ticket, most_urgent: int, now: float) -> tuple[bool, int, float, bool, int]:
        """The order of waiting tickets: the smallest comes first."""
        aged = ticket.priority if ticket.extra else ticket.priority - (now - ticket.arrived) / self.aging_s
        start = max(self._virtual_time, self._finish.get(ticket.client, 0.0))
        aside = self._stands_aside(ticket, now)
        return aside, max(math.ceil(aged), most_urgent), start, ticket.extra, ticket.number

    def _fits(self, ticket: Ticket, now: float) -> bool:
        if not self.running:
            return True
        if self._stands_aside(ticket, now):
            return False
        return len(self.running) < self.max_running and self.running_tokens + ticket.tokens <= self.max_running_tokens

    def _stands_aside(self, ticket: Ticket, now: float) -> bool:
        """Whether what is left of the places is kept for others than this ticket."""
        return self._only_reserve_is_left(ticket) or (ticket.extra and not self._leaves_room(ticket, now))

    def _leaves_room(self, extra: Ticket, now: float) -> bool:
        if not self.waiting:  # whoever waits has had no room left, and then the order decides
            places = self.max_running - max(1.0, self.max_running / RESERVED_SHARE)
            tokens = self.max_running_tokens * (1 - 1 / RESERVED_SHARE)
            if len(self.running) + 1 > places or self.running_tokens + extra.tokens > tokens:
                return False
        share = 1.0
        if self._running_narrow or now - self._narrow_seen <= RESERVE_SECONDS:
            share = EXTRAS_SHARE_BESIDE_OTHERS
        return (
            self._running_extras + 1 <= share * self.max_running
            and self._running_extra_tokens + extra.tokens <= share * self.max_running_tokens
        )

    def _only_reserve_is_left(self, ticket: Ticket) -> bool:
        """Whether the places that are left are kept for clients with nothing running, and this is none of them."""
        if not self._running_of[ticket.client]:
            return False
        unreserved = self.max_running - (self.max_running // RESERVED_SHARE if len(self._seen) > 1 else 0)
        return len(self.running) >= unreserved

    def _start(self, ticket: Ticket) -> None:
        self._drop(ticket)
        self.running[ticket] = None
        self._hold(ticket, 1)
        start = max(self._virtual_time, self._finish.get(ticket.client, 0.0))
        self._virtual_time = start
        self._finish[ticket.client] = start + ticket.tokens / ticket.weight

    def _hold(self, ticket: Ticket, sign: int) -> None:
        """Count what a ticket holds that starts to run, or that ends."""
        self.running_tokens += sign * ticket.tokens
        self._running_extras += sign * ticket.extra
        self._running_extra_tokens += sign * ticket.tokens * ticket.extra
        self._running_narrow += sign * (not ticket.wide)
        self._count(self._running_of, ticket.client, sign)

    def _drop(self, ticket: Ticket) -> None:
        if ticket.extra:
            del self.waiting_extras[ticket]
            return
        del self.waiting[ticket]
        self._count(self._queued_of, ticket.client, -1)

    def _fuller_client(self, client: str, weight: float) -> str | None:
        """The client with the most waiting tickets for its weight, if they are more than `client` would have."""
        weights = {ticket.client: ticket.weight for ticket in self.waiting}
        if not weights:
            return None
        fullest = max(weights, key=lambda name: self._queued_of[name] / weights[name])
        mine = (self._queued_of[client] + 1) / weight
        return fullest if fullest != client and self._queued_of[fullest] / weights[fullest] > mine else None

    def _forget_idle(self) -> None:
        """Accounts of clients with nothing here that were served no further than now need not be kept."""
        if not self.running and not self.waiting:
            self._finish.clear()
            self._virtual_time = 0.0

    @staticmethod
    def _count(counter: Counter[str], client: str, change: int) -> None:
        counter[client] += change
        if not counter[client]:
            del counter[client]
