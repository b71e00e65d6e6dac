"""What is kept: every client its own, the newest, not too many and not too large."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry

from server.api.shelf import OwnItems, Shelf, owner


@contextmanager
def of(name: str) -> Iterator[None]:
    token = owner.set(name)
    yield
    owner.reset(token)


@pytest.fixture
def forgotten() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def shelf(forgotten: list[tuple[str, str]], registry: CollectorRegistry) -> Shelf:
    return Shelf(3, 100, lambda key: forgotten.append((owner.get(), key)), registry)


def test_items_are_their_owners() -> None:
    items: OwnItems[int] = OwnItems()
    with of("red"):
        items["a"] = 1
    with of("blue"):
        assert "a" not in items
        assert items.get("a") is None
        items["a"] = 2
        assert items.pop("a") == 2
    with of("red"):
        assert dict(items) == {"a": 1}
        assert len(items) == 1


def test_the_oldest_goes(shelf: Shelf, forgotten: list[tuple[str, str]]) -> None:
    with of("red"):
        for key in "abcde":
            shelf.put(key, 1)
        assert [key for key in "abcde" if key in shelf] == ["c", "d", "e"]
    assert forgotten == [("red", "a"), ("red", "b")]


def test_the_size_counts(shelf: Shelf, forgotten: list[tuple[str, str]]) -> None:
    with of("red"):
        shelf.put("a", 40)
        shelf.put("b", 40)
        shelf.put("b", 30)  # grows
        assert shelf.size("b") == 70
        assert "a" not in shelf
        shelf.put("c", 1000)  # too large by itself; the newest stays
        assert "c" in shelf
        assert "b" not in shelf
        shelf.put("d", 1)
        assert "c" not in shelf
    assert [key for _, key in forgotten] == ["a", "b", "c"]


def test_nobody_pushes_out_anothers(shelf: Shelf, forgotten: list[tuple[str, str]]) -> None:
    with of("red"):
        shelf.put("mine", 90)
    with of("blue"):
        for number in range(50):
            shelf.put(str(number), 90)
    with of("red"):
        assert "mine" in shelf
    assert {name for name, _ in forgotten} == {"blue"}


def test_what_is_being_made_stays(shelf: Shelf) -> None:
    with of("red"):
        shelf.put("a", 1)
        shelf.pin("a")
        for number in range(10):
            shelf.put(str(number), 90)
        assert "a" in shelf
        shelf.unpin("a")
        shelf.put("b", 90)
        assert "a" not in shelf


def test_metrics(shelf: Shelf, registry: CollectorRegistry) -> None:
    for name in ("red", "blue"):
        with of(name):
            shelf.put("a", 7)
    assert registry.get_sample_value("fusion_responses_stored") == 2
    assert registry.get_sample_value("fusion_responses_stored_bytes") == 14
    with of("red"):
        shelf.drop("a")
        shelf.drop("a")
    assert registry.get_sample_value("fusion_responses_stored") == 1
    assert registry.get_sample_value("fusion_responses_stored_bytes") == 7
