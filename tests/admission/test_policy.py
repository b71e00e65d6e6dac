"""The admission policy under a clock of the test's own."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.admission.policy import AdmissionError, Policy, Reason, Ticket


def make_policy(**changes: float) -> Policy:
    options = {"max_running": 8, "max_running_tokens": 1e9, "max_queued": 100, "queue_timeout_s": 30.0, "aging_s": 10.0}
    return Policy(**(options | changes))  # type: ignore[arg-type]


def admitted(policy: Policy, now: float = 0.0) -> list[Ticket]:
    return policy.admit(now)


class TestBudget:
    def test_sequences(self) -> None:
        policy = make_policy(max_running=2)
        tickets = [Ticket("a"), Ticket("a"), Ticket("a")]
        for ticket in tickets:
            policy.enter(ticket, 0.0)
        assert admitted(policy) == tickets[:2]
        policy.leave(tickets[1], 1.0)
        assert admitted(policy, 1.0) == [tickets[2]]

    def test_tokens(self) -> None:
        policy = make_policy(max_running_tokens=100)
        small, large = Ticket("a", tokens=60), Ticket("a", tokens=50)
        policy.enter(small, 0.0)
        policy.enter(large, 0.0)
        assert admitted(policy) == [small]
        policy.leave(small, 1.0)
        assert admitted(policy, 1.0) == [large]

    def test_larger_than_everything_runs_alone(self) -> None:
        policy = make_policy(max_running=2, max_running_tokens=100)
        first, huge, last = Ticket("a"), Ticket("a", tokens=1e6), Ticket("a")
        for ticket in (first, huge, last):
            policy.enter(ticket, 0.0)
        assert admitted(policy) == [first]
        policy.leave(first, 1.0)
        assert admitted(policy, 1.0) == [huge]
        policy.leave(huge, 2.0)
        assert admitted(policy, 2.0) == [last]

    def test_nothing_overtakes_the_ticket_in_front(self) -> None:
        policy = make_policy(max_running_tokens=100)
        running, wide, narrow = Ticket("a", tokens=60), Ticket("a", tokens=60), Ticket("a", tokens=1)
        for ticket in (running, wide, narrow):
            policy.enter(ticket, 0.0)
        assert admitted(policy) == [running]

    def test_leaving_twice_frees_one_place(self) -> None:
        policy = make_policy()
        ticket, other = Ticket("a"), Ticket("a")
        policy.enter(ticket, 0.0)
        policy.enter(other, 0.0)
        policy.admit(0.0)
        policy.leave(ticket, 1.0)
        policy.leave(ticket, 1.0)
        assert list(policy.running) == [other]


class TestQueue:
    def test_full_queue_refuses_and_says_when_to_come_back(self) -> None:
        policy = make_policy(max_running=1, max_queued=2)
        for _ in range(3):
            policy.enter(Ticket("a"), 0.0)
            policy.admit(0.0)
        assert not policy.has_room("a", 1.0)
        with pytest.raises(AdmissionError) as caught:
            policy.enter(Ticket("a"), 0.0)
        assert caught.value.reason is Reason.QUEUE_FULL
        assert caught.value.retry_after == 30  # nothing has ended yet, so nothing is known

    def test_without_a_queue_a_free_place_is_still_given(self) -> None:
        policy = make_policy(max_running=1, max_queued=0)
        assert policy.has_room("a", 1.0)
        policy.enter(Ticket("a"), 0.0)
        assert len(admitted(policy)) == 1
        with pytest.raises(AdmissionError):
            policy.enter(Ticket("a"), 0.0)

    def test_retry_after_follows_the_drain_rate(self) -> None:
        policy = make_policy(max_running=1, max_queued=20)
        tickets = [Ticket("a") for _ in range(31)]
        for second, ticket in enumerate(tickets[:11]):  # one request a second ends
            policy.enter(ticket, float(second))
            policy.admit(float(second))
            policy.leave(ticket, float(second))
        for ticket in tickets[11:]:
            policy.enter(ticket, 10.0)
        assert policy.retry_after(10.0) == pytest.approx(21, abs=2)

    def test_patience(self) -> None:
        policy = make_policy(max_running=1, queue_timeout_s=5.0)
        running, early, late = Ticket("a"), Ticket("a"), Ticket("a")
        for ticket, now in ((running, 0.0), (early, 1.0), (late, 3.0)):
            policy.enter(ticket, now)
            policy.admit(now)
        assert policy.next_expiry() == 6.0
        assert policy.expire(5.9) == []
        assert policy.expire(6.0) == [early]
        assert list(policy.waiting) == [late]

    def test_a_flood_does_not_fill_the_queue_for_others(self) -> None:
        policy = make_policy(max_running=1, max_queued=4)
        flood = [Ticket("flood") for _ in range(5)]
        for ticket in flood:
            policy.enter(ticket, 0.0)
            policy.admit(0.0)
        assert policy.has_room("quiet", 1.0)
        quiet = Ticket("quiet")
        assert policy.enter(quiet, 0.0) is flood[-1]
        assert quiet in policy.waiting
        assert not policy.has_room("flood", 1.0)


class TestOrder:
    def test_lower_priority_value_first(self) -> None:
        policy = make_policy(max_running=1)
        running, usual, urgent = Ticket("a"), Ticket("a"), Ticket("b", priority=-1)
        policy.enter(running, 0.0)
        policy.admit(0.0)
        policy.enter(usual, 0.0)
        policy.enter(urgent, 0.0)
        policy.leave(running, 1.0)
        assert admitted(policy, 1.0) == [urgent]

    def test_waiting_makes_urgent(self) -> None:
        policy = make_policy(max_running=1, aging_s=1.0, queue_timeout_s=1e9)
        background = Ticket("slow", priority=3)
        policy.enter(running := Ticket("fast"), 0.0)
        policy.admit(0.0)
        policy.enter(background, 0.0)
        for now in itertools.count(1):
            policy.enter(Ticket("fast"), float(now))
            policy.leave(running, float(now))
            (running,) = policy.admit(float(now))
            if running is background:
                break
            assert now < 5
        assert now >= 3

    def test_shares_follow_the_weights(self) -> None:
        policy = make_policy(max_running=4, max_queued=10_000, queue_timeout_s=1e9)
        clients = {"a": 1.0, "b": 3.0}
        for _ in range(500):
            for name, weight in clients.items():
                policy.enter(Ticket(name, weight=weight, tokens=10), 0.0)
        served: Counter[str] = Counter()
        running = policy.admit(0.0)
        for now in range(400):
            ticket = running.pop(0)
            served[ticket.client] += 1
            policy.leave(ticket, float(now))
            running += policy.admit(float(now))
        assert served["b"] / served["a"] == pytest.approx(3.0, rel=0.1)

    def test_a_client_that_comes_late_is_not_owed_the_past(self) -> None:
        policy = make_policy(max_running=1, max_queued=1000)
        for _ in range(100):
            policy.enter(Ticket("early", tokens=10), 0.0)
        (running,) = policy.admit(0.0)
        for now in range(50):
            policy.leave(running, float(now))
            (running,) = policy.admit(float(now))
        for _ in range(50):
            policy.enter(Ticket("late", tokens=10), 50.0)
        order = []
        for now in range(50, 70):
            policy.leave(running, float(now))
            (running,) = policy.admit(float(now))
            order.append(running.client)
        assert order.count("late") == pytest.approx(10, abs=1)

    def test_clients_pay_for_what_they_used(self) -> None:
        """One reserves much and uses little; it gets as many tokens as one that says beforehand what it needs."""
        policy = make_policy(max_running=1, max_queued=10_000, queue_timeout_s=1e9)
        for _ in range(1000):
            policy.enter(Ticket("modest", tokens=10), 0.0)
            policy.enter(Ticket("cautious", tokens=1000), 0.0)
        used: Counter[str] = Counter()
        (running,) = policy.admit(0.0)
        for now in range(1000):
            used[running.client] += 10
            policy.leave(running, float(now), used_tokens=10)
            (running,) = policy.admit(float(now))
        assert used["cautious"] == pytest.approx(used["modest"], rel=0.05)

    def test_old_tickets_of_a_flood_are_not_urgent(self) -> None:
        """Waiting long raises a ticket's priority up to the others', never above them."""
        policy = make_policy(max_running=1, aging_s=1.0)
        policy.enter(running := Ticket("flood", tokens=10), 0.0)
        policy.admit(0.0)
        for _ in range(50):
            policy.enter(Ticket("flood", tokens=10), 0.0)
        policy.enter(quiet := Ticket("quiet", tokens=10), 20.0)
        policy.leave(running, 20.0)
        policy.admit(20.0)
        assert quiet in policy.running


class TestReserve:
    def test_a_client_with_nothing_running_finds_a_place(self) -> None:
        policy = make_policy(max_running=8)
        policy.enter(first := Ticket("quiet"), 0.0)
        policy.admit(0.0)
        for _ in range(20):
            policy.enter(Ticket("flood"), 0.0)
        policy.admit(0.0)
        policy.leave(first, 1.0)
        policy.admit(1.0)
        policy.enter(second := Ticket("quiet"), 2.0)
        assert admitted(policy, 2.0) == [second]

    def test_a_client_that_has_gone_keeps_nothing(self) -> None:
        policy = make_policy(max_running=8, queue_timeout_s=1e9)
        policy.enter(gone := Ticket("gone"), 0.0)
        policy.admit(0.0)
        policy.leave(gone, 1.0)
        for _ in range(20):
            policy.enter(Ticket("flood"), 30.0)
        assert len(admitted(policy, 30.0)) == 7
        assert len(admitted(policy, 61.0)) == 1

    def test_one_client_alone_has_all_places(self) -> None:
        policy = make_policy(max_running=8)
        for _ in range(20):
            policy.enter(Ticket("only"), 0.0)
        assert len(admitted(policy)) == 8


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_random_traffic_keeps_the_contract(seed: int) -> None:
    """Arrivals, ends, cancellations and time in any order: budgets hold, and every ticket has one fate."""
    rng = random.Random(seed)
    policy = make_policy(max_running=6, max_running_tokens=500, max_queued=10, queue_timeout_s=20.0)
    fate: dict[Ticket, str] = {}
    retries: list[int | None] = []
    now = 0.0
    for _ in range(300):
        now += rng.expovariate(2.0)
        action = rng.random()
        if action < 0.6:
            ticket = Ticket(
                rng.choice("abc"),
                weight=rng.choice([0.5, 1.0, 4.0]),
                priority=rng.choice([0, 0, 0, -2, 5]),
                wide=(wide := rng.random() < 0.3),
                extra=wide and rng.random() < 0.8,
                tokens=rng.choice([1, 50, 200, 900]),
            )
            try:
                pushed_out = policy.enter(ticket, now)
                fate[ticket] = "waiting"
                if pushed_out is not None:
                    assert fate[pushed_out] == "waiting"
                    fate[pushed_out] = "refused"
            except AdmissionError as error:
                retries.append(error.retry_after)
                fate[ticket] = "refused"
        elif fate:
            ticket = rng.choice(list(fate))
            if fate[ticket] in ("waiting", "running"):
                policy.leave(ticket, now, used_tokens=rng.random() * ticket.tokens)
                fate[ticket] = "gone"
        for ticket in policy.admit(now):
            assert fate[ticket] == "waiting"
            fate[ticket] = "running"
        for ticket in policy.expire(now):
            assert fate[ticket] == "waiting"
            fate[ticket] = "refused"
        assert {*policy.waiting, *policy.waiting_extras} == {
            ticket for ticket, state in fate.items() if state == "waiting"
        }
        assert set(policy.running) == {ticket for ticket, state in fate.items() if state == "running"}
        assert len(policy.waiting) <= 10
        if len(policy.running) > 1:
            assert len(policy.running) <= 6
            assert sum(ticket.tokens for ticket in policy.running) <= 500 + 1e-9
        assert all(not ticket.extra for ticket in policy.waiting)
        assert policy.running or not policy.waiting, "the engine idles while somebody waits"
    assert all(seconds is not None and 1 <= seconds <= 60 for seconds in retries)
