"""The admission policy at work: requests wait here for their place, and what happens is counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.context import Context
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from server.admission.policy import AdmissionError, Policy, Reason, Ticket

WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
DRAINING = "the server is shutting down and takes no more requests; try again elsewhere, or in a moment"
DRAINING_RETRY_SECONDS = 5

# Does nothing unless a tracer provider is set, as vLLM does for `engine.otlp_traces_endpoint`.
_tracer = trace.get_tracer("logit_fusion.admission")


class Gate:
    """One policy over one event loop."""

    def __init__(
        self, policy: Policy, registry: CollectorRegistry = REGISTRY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.policy = policy
        self.draining = False
        self._clock = clock
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._metrics = _Metrics(policy, registry)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.policy.running and not self.policy.waiting

    def check(self, client: str, weight: float) -> None:
        """Refuse a request that cannot come in, before any work is spent on it.

        Raises:
            AdmissionError: the server drains, or the queue is full.
        """
        if self.draining:
            raise self.count(AdmissionError(Reason.DRAINING, DRAINING, DRAINING_RETRY_SECONDS))
        if not self.policy.has_room(client, weight):
            raise self.count(self.policy.refusal(Reason.QUEUE_FULL, self._clock()))

    async def enter(self, ticket: Ticket, context: Context | None = None) -> None:
        """Return when the ticket has its place; `leave` must follow. A cancelled wait leaves by itself.

        `context` is the trace that the wait becomes a span of.

        Raises:
            AdmissionError: there is no place, or none became free in time; never of an extra ticket.
        """
        if not ticket.extra:
            self.check(ticket.client, ticket.weight)
        arrived = self._clock()
        try:
            pushed_out = self.policy.enter(ticket, arrived)
        except AdmissionError as refused:
            raise self.count(refused) from None
        if pushed_out is not None:
            self._refuse(pushed_out, self.policy.refusal(Reason.QUEUE_FULL, arrived))
        granted = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        self._move()
        if ticket.extra:
            await self._granted(ticket, granted)
            return
        with _tracer.start_as_current_span("fusion.admission", context) as span:
            span.set_attribute("fusion.client", ticket.client)
            span.set_attribute("fusion.tokens", ticket.tokens)
            await self._granted(ticket, granted)
        self._metrics.wait.observe(self._clock() - arrived)

    async def _granted(self, ticket: Ticket, granted: asyncio.Future[None]) -> None:
        try:
            await granted
        except BaseException:
            self._waiting.pop(ticket, None)
            self.leave(ticket)
            raise

    def leave(self, ticket: Ticket, used_tokens: float | None = None) -> None:
        """Free the ticket's place; harmless for a ticket that has none."""
        self.policy.leave(ticket, self._clock(), used_tokens)
        self._move()

    def drain(self) -> None:
        """Let no request in any more, and send those away that wait; extra tickets belong to what runs already."""
        self.draining = True
        for ticket in list(self.policy.waiting):
            self._refuse(ticket, AdmissionError(Reason.DRAINING, DRAINING, DRAINING_RETRY_SECONDS))
            self.policy.leave(ticket, self._clock())

    def count(self, refused: AdmissionError) -> AdmissionError:
        """Count a refusal, also one that was decided elsewhere, such as by a rate limit."""
        self._metrics.rejected.labels(reason=refused.reason.value).inc()
        return refused

    def _move(self) -> None:
        now = self._clock()
        for ticket in self.policy.admit(now):
            granted = self._waiting.pop(ticket)
            if not granted.done():
                granted.set_result(None)
        for ticket in self.policy.expire(now):
            self._refuse(ticket, self.policy.refusal(Reason.QUEUE_TIMEOUT, now))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        expiry = self.policy.next_expiry()
        if expiry is not None:
            self._timer = asyncio.get_running_loop().call_later(max(expiry - now, 0.0), self._move)

    def _refuse(self, ticket: Ticket, refused: AdmissionError) -> None:
        granted = self._waiting.pop(ticket, None)
        if granted is not None and not granted.done():
            granted.set_exception(self.count(refused))


class _Metrics:
    """The gate's series, read from the policy where it knows them."""

    def __init__(self, policy: Policy, registry: CollectorRegistry) -> None:
        queued = Gauge("fusion_admission_queue_depth", "Requests waiting for a place in the engine.", registry=registry)
        queued.set_function(lambda: len(policy.waiting))
        running = Gauge("fusion_admission_running", "Sequences that hold a place in the engine.", registry=registry)
        running.set_function(lambda: len(policy.running))
        tokens = Gauge(
            "fusion_admission_running_tokens",
            "Prompt and maximal output tokens of the sequences in the engine, weighted by the members they run.",
            registry=registry,
        )
        tokens.set_function(lambda: policy.running_tokens)
        self.wait = Histogram(
            "fusion_admission_wait_seconds",
            "Time from a request's arrival to its place in the engine.",
            buckets=WAIT_BUCKETS,
            registry=registry,
        )
        self.rejected = Counter(
            "fusion_admission_rejected",
            "Requests that were refused, by reason.",
            ["reason"],
            registry=registry,
        )
        for reason in Reason:
            self.rejected.labels(reason=reason.value)
