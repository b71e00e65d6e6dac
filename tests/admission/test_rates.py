"""Token buckets under a clock of the test's own."""

from __future__ import annotations

import pytest

from server.admission import AdmissionError, Rates
from server.admission.policy import Reason


def test_a_minute_holds_its_amount_and_no_more() -> None:
    rates = Rates()
    for _ in range(6):
        rates.take("a", "requests", 1, 6, now=0.0)
    with pytest.raises(AdmissionError, match="6 requests a minute is reached; try again in 10 s") as caught:
        rates.take("a", "requests", 1, 6, now=0.0)
    assert caught.value.reason is Reason.RATE_LIMIT
    assert caught.value.retry_after == 10
    rates.take("a", "requests", 1, 6, now=10.0)


def test_clients_do_not_share() -> None:
    rates = Rates()
    rates.take("a", "requests", 1, 1, now=0.0)
    rates.take("b", "requests", 1, 1, now=0.0)


def test_what_was_not_used_comes_back_up_to_a_minutes_worth() -> None:
    rates = Rates()
    rates.take("a", "tokens", 100, 100, now=0.0)
    rates.give_back("a", "tokens", 90, 100, now=0.0)
    rates.take("a", "tokens", 90, 100, now=0.0)
    rates.give_back("a", "tokens", 1000, 100, now=0.0)
    with pytest.raises(AdmissionError):
        rates.take("a", "tokens", 101, 100, now=0.0)


def test_more_than_ever_fits_is_not_worth_another_try() -> None:
    with pytest.raises(AdmissionError, match="may need 101 tokens; your key allows 100 a minute") as caught:
        Rates().take("a", "tokens", 101, 100, now=0.0)
    assert caught.value.retry_after is None


def test_no_limit() -> None:
    for _ in range(1000):
        Rates().take("a", "requests", 1, None, now=0.0)
