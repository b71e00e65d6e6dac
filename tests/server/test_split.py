"""How a split draws: in its proportions, always the same, each split by itself, and moving none that need not move."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from server.api.requests import FusionChatCompletionRequest, FusionMessagesRequest
from server.api.split import SplitCounts, arm_of, draw
from server.auth import ANYBODY, Client
from server.config import Config

USERS = [f"user-{number}" for number in range(20_000)]
ROOM = 0.015
"""Four standard deviations of a share among as many users."""


def drawn(shares: dict[str, float], preset: str = "ab") -> list[str]:
    return [draw(preset, shares, user) for user in USERS]


@pytest.mark.parametrize(
    "shares", [{"a": 0.9, "b": 0.1}, {"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 1.0}, {"a": 0.999, "b": 0.001}]
)
def test_proportions(shares: dict[str, float]) -> None:
    arms = drawn(shares)
    for arm, share in shares.items():
        assert arms.count(arm) / len(USERS) == pytest.approx(share, abs=ROOM)


def test_it_is_the_same_on_every_machine() -> None:
    """Replicas and restarts must agree; another version of this server should too."""
    shares = {"giant": 0.5, "giant-math": 0.5}
    first = "".join("gm"[draw("ab", shares, f"user {number}") == "giant-math"] for number in range(16))
    assert first == FIRST


FIRST = "ggmgmmmmmmgmgggm"


def test_two_splits_are_independent() -> None:
    shares = {"a": 0.5, "b": 0.5}
    both = list(zip(drawn(shares), drawn(shares, "other"), strict=True))
    for pair in itertools.product("ab", "ab"):
        assert both.count(pair) / len(USERS) == pytest.approx(0.25, abs=ROOM)


def test_between_two_only_the_difference_moves() -> None:
    before, after = drawn({"a": 0.9, "b": 0.1}), drawn({"a": 0.8, "b": 0.2})
    moved = {pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]}
    assert moved == {("a", "b")}
    share = sum(was != now for was, now in zip(before, after, strict=True)) / len(USERS)
    assert share == pytest.approx(0.1, abs=ROOM)


def test_who_moves_leaves_one_that_lost_for_one_that_gained() -> None:
    before, after = drawn({"a": 0.5, "b": 0.3, "c": 0.2}), drawn({"a": 0.4, "b": 0.3, "c": 0.3})
    moved = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert not {was for was, _ in moved} & {"c"}
    assert not {now for _, now in moved} & {"a"}
    assert 0.1 - ROOM < len(moved) / len(USERS) < 2 * 0.1


def test_a_new_arm_takes_from_the_others_alone() -> None:
    before, after = drawn({"a": 0.6, "b": 0.4}), drawn({"a": 0.54, "b": 0.36, "c": 0.1})
    assert {now for was, now in zip(before, after, strict=True) if was != now} == {"c"}


def test_their_order_says_nothing() -> None:
    assert drawn({"a": 0.5, "b": 0.3, "c": 0.2}) == drawn({"c": 0.2, "a": 0.5, "b": 0.3})


def test_without_anybody_to_remember_it_is_drawn() -> None:
    arms = [draw("ab", {"a": 0.7, "b": 0.3}, None) for _ in range(2_000)]
    assert arms.count("b") / len(arms) == pytest.approx(0.3, abs=0.06)


CONFIG = Config.model_validate(
    {
        "large": {"model": "someone/large"},
        "presets": {
            "a": {"weighting": "none"},
            "b": {"weighting": "none"},
            **{f"by-{sticky}": {"split": {"a": 0.5, "b": 0.5}, "sticky": sticky} for sticky in ("key", "user", "none")},
        },
    }
)
MANY = range(64)


def arms(preset: str, client: Client, requests: list[Any]) -> list[str]:
    return [arm_of(preset, CONFIG, client, request) for request in requests]


def chat(**fields: Any) -> FusionChatCompletionRequest:
    return FusionChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "a"}]} | fields)


def clients() -> list[Client]:
    return [Client(name=f"team-{number}") for number in MANY]


class TestWhoIsRemembered:
    def test_a_key_goes_before_its_users(self) -> None:
        team, *others = clients()
        users = [chat(user=str(number)) for number in MANY]
        assert len(set(arms("by-key", team, users))) == 1
        assert {arm_of("by-key", CONFIG, other, chat()) for other in others} == {"a", "b"}

    def test_users_of_a_key(self) -> None:
        team, other, *_ = clients()
        users = [chat(user=str(number)) for number in MANY]
        mine = arms("by-user", team, users)
        assert set(mine) == {"a", "b"}
        assert mine == arms("by-user", team, users)
        assert mine != arms("by-user", other, users), "users of the same name at another client are others"
        assert len(set(arms("by-user", team, [chat() for _ in MANY]))) == 1, "without a user it is the key"

    def test_without_keys_it_is_the_user(self) -> None:
        users = [chat(user=str(number)) for number in MANY]
        assert arms("by-key", ANYBODY, users) == arms("by-key", ANYBODY, users) == arms("by-key", ANYBODY, users)
        assert set(arms("by-key", ANYBODY, users)) == {"a", "b"}

    def test_the_fields_in_their_order(self) -> None:
        ids = [str(number) for number in MANY]
        by_user = arms("by-user", ANYBODY, [chat(user=each) for each in ids])
        assert arms("by-user", ANYBODY, [chat(safety_identifier=each, user="x") for each in ids]) == by_user
        assert arms("by-user", ANYBODY, [chat(user=each, prompt_cache_key="x") for each in ids]) == by_user
        assert arms("by-user", ANYBODY, [chat(user="", prompt_cache_key=each) for each in ids]) == by_user
        messages = [{"role": "user", "content": "a"}]
        anthropic = [
            FusionMessagesRequest.model_validate(
                {"model": "x", "max_tokens": 1, "messages": messages, "metadata": {"user_id": each}}
            )
            for each in ids
        ]
        assert arms("by-user", ANYBODY, anthropic) == by_user

    @pytest.mark.parametrize("preset", ["by-key", "by-user"])
    def test_nobody(self, preset: str) -> None:
        assert set(arms(preset, ANYBODY, [chat() for _ in MANY])) == {"a", "b"}
        assert set(arms("by-none", clients()[0], [chat(user="u") for _ in MANY])) == {"a", "b"}

    def test_any_text_is_a_user(self) -> None:
        assert arm_of("by-user", CONFIG, ANYBODY, chat(user="\ud800 \0 ü")) in ("a", "b")


def test_metrics() -> None:
    registry = CollectorRegistry()
    counts = SplitCounts(CONFIG, registry)

    def value(name: str, arm: str) -> float | None:
        return registry.get_sample_value(name, {"preset": "by-key", "arm": arm})

    assert value("fusion_split_requests_total", "a") == 0
    hear, end = counts.count("by-key", "b")
    end()
    assert value("fusion_split_requests_total", "b") == 1
    assert value("fusion_split_request_seconds_count", "b") == 0, "nothing was generated"

    seat: Any = SimpleNamespace(generated=5)
    hear(seat)
    hear(seat)
    end()
    assert value("fusion_split_tokens_total", "b") == 10
    assert value("fusion_split_request_seconds_count", "b") == 1
