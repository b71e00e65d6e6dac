"""Requests of many sequences in the policy: one ticket as every other request, and extras while there is room."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from server.admission import AdmissionError, Gate, Policy, Ticket


def make_policy(max_running: int = 8, max_running_tokens: float = 1e9, max_queued: int = 100) -> Policy:
    return Policy(max_running, max_running_tokens, max_queued, queue_timeout_s=30.0, aging_s=10.0)


def wide(client: str = "a", tokens: float = 1.0) -> Ticket:
    return Ticket(client, wide=True, tokens=tokens)


def extra(client: str = "a", tokens: float = 1.0, priority: int = 0) -> Ticket:
    return Ticket(client, wide=True, extra=True, tokens=tokens, priority=priority)


def feed(policy: Policy, client: str = "a", now: float = 0.0, tokens: float = 1.0) -> list[Ticket]:
    """Extras one after another, until one has to wait; that one is left out of the queue again."""
    running: list[Ticket] = []
    while True:
        policy.enter(ticket := extra(client, tokens), now)
        if ticket not in policy.admit(now):
            policy.leave(ticket, now)
            return running
        running.append(ticket)


def test_alone_it_leaves_an_eighth_to_whoever_comes_next() -> None:
    policy = make_policy(max_running=16)
    policy.enter(wide(), 0.0)
    policy.admit(0.0)
    assert len(feed(policy)) == 13
    policy.enter(Ticket("a"), 0.0)
    policy.enter(Ticket("a"), 0.0)
    assert len(policy.admit(0.0)) == 2


def test_one_place_at_least_is_left() -> None:
    policy = make_policy(max_running=2)
    policy.enter(wide(), 0.0)
    policy.admit(0.0)
    assert feed(policy) == []
    policy.enter(Ticket("a"), 0.0)
    assert len(policy.admit(0.0)) == 1


def test_beside_single_sequences_it_holds_half_at_most() -> None:
    policy = make_policy(max_running=16)
    policy.enter(single := Ticket("a"), 0.0)
    policy.enter(wide(), 0.0)
    policy.admit(0.0)
    extras = feed(policy)
    assert len(extras) == 8
    policy.leave(single, 1.0)
    assert feed(policy, now=30.0) == [], "another may come: one came within the last minute"
    assert len(feed(policy, now=61.0)) == 13 - 8


def test_two_wide_requests_share_all_places() -> None:
    policy = make_policy(max_running=16)
    policy.enter(wide("a"), 0.0)
    policy.enter(wide("a"), 0.0)
    policy.admit(0.0)
    assert len(feed(policy)) == 12


def test_tokens_are_left_too() -> None:
    policy = make_policy(max_running=1000, max_running_tokens=800)
    policy.enter(wide(tokens=100), 0.0)
    policy.admit(0.0)
    assert len(feed(policy, tokens=100)) == 6
    policy.enter(Ticket("a", tokens=100), 0.0)
    assert len(policy.admit(0.0)) == 1


def test_within_a_client_extras_come_last() -> None:
    policy = make_policy(max_running=4)
    policy.enter(wide(), 0.0)
    policy.admit(0.0)
    extras = feed(policy)
    policy.enter(waiting_extra := extra(), 1.0)
    policy.enter(first := Ticket("a"), 2.0)
    policy.enter(second := Ticket("a"), 2.0)
    assert policy.admit(2.0) == [first]
    policy.leave(extras[0], 3.0)
    assert policy.admit(3.0) == [second]
    policy.leave(extras[1], 4.0)
    assert policy.admit(4.0) == [], "one place is kept free of extras"
    policy.leave(first, 5.0)
    assert policy.admit(5.0) == [waiting_extra]


def test_an_extra_that_waits_holds_nobody_up() -> None:
    """Also one of a more urgent request stands aside."""
    policy = make_policy(max_running=8)
    policy.enter(wide(), 0.0)
    policy.admit(0.0)
    feed(policy)
    policy.enter(extra(priority=-5), 0.0)
    policy.enter(single := Ticket("a"), 0.0)
    assert policy.admit(0.0) == [single]


def test_extras_fill_no_queue_and_have_no_patience_to_lose() -> None:
    policy = make_policy(max_running=1, max_queued=1)
    policy.enter(wide(), 0.0)
    policy.admit(0.0)
    policy.enter(waiting := extra(), 0.0)
    assert policy.has_room("a", 1.0)
    assert policy.next_expiry() is None
    policy.enter(single := Ticket("a"), 0.0)
    assert policy.expire(100.0) == [single]
    assert waiting in policy.waiting_extras
    policy.leave(waiting, 100.0)
    assert not policy.waiting_extras


def test_between_clients_extras_are_charged_as_all_else() -> None:
    """A key with one wide request and a key with many small ones get the same tokens."""
    policy = make_policy(max_running=16, max_queued=10_000)
    policy.enter(wide("wide", tokens=10), 0.0)
    policy.admit(0.0)
    for _ in range(2000):
        policy.enter(Ticket("small", tokens=10), 0.0)
    policy.enter(extra("wide", tokens=10), 0.0)
    served = {"wide": 0, "small": 0}
    running: list[Ticket] = []
    for step in range(400):
        now = step / 10
        if running:
            policy.leave(running.pop(0), now)
        while started := policy.admit(now):
            running += started
            for ticket in started:
                served[ticket.client] += 1
                if ticket.extra:  # the next one of the request follows
                    policy.enter(extra("wide", tokens=10), now)
    assert 0.8 < served["wide"] / served["small"] < 1.25


async def test_a_drain_lets_a_request_go_on() -> None:
    gate = Gate(make_policy(), CollectorRegistry())
    await gate.enter(own := wide())
    gate.drain()
    with pytest.raises(AdmissionError):
        await gate.enter(Ticket("a"))
    await gate.enter(more := extra())
    assert not gate.idle
    gate.leave(more)
    gate.leave(own)
    assert gate.idle
