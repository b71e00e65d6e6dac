"""Where answers are kept for a while: every client its own, a bounded number of a bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextvars import ContextVar
from typing import Generic, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

Value = TypeVar("Value")

owner: ContextVar[str] = ContextVar("owner")
"""The client whose request runs in this task, or in one that it started."""


class OwnItems(MutableMapping[str, Value], Generic[Value]):
    """A dictionary in which every client finds its own items only.

    vLLM keeps responses by their id alone; with these in their place nobody reads, cancels or overwrites another's.
    """

    def __init__(self) -> None:
        self._items: dict[tuple[str, str], Value] = {}

    def __getitem__(self, key: str) -> Value:
        return self._items[owner.get(), key]

    def __setitem__(self, key: str, value: Value) -> None:
        self._items[owner.get(), key] = value

    def __delitem__(self, key: str) -> None:
        del self._items[owner.get(), key]

    def __iter__(self) -> Iterator[str]:
        return (key for name, key in self._items if name == owner.get())

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Shelf:
    """What each client keeps, by id: the oldest goes when there are too many, or when they are too large.

    The newest stays whatever its size, and so does what is pinned because it is still being made.
    """

    def __init__(
        self, most: int, most_bytes: int, forget: Callable[[str], None], registry: CollectorRegistry = REGISTRY
    ) -> None:
        self._most, self._most_bytes, self._forget = most, most_bytes, forget
        self._sizes: dict[str, dict[str, int]] = {}
        self._pinned: set[tuple[str, str]] = set()
        kept = Gauge("fusion_responses_stored", "Answers of /v1/responses that are kept.", registry=registry)
        kept.set_function(lambda: sum(map(len, self._sizes.values())))
        held = Gauge("fusion_responses_stored_bytes", "Size of the answers that are kept, as JSON.", registry=registry)
        held.set_function(lambda: sum(sum(sizes.values()) for sizes in self._sizes.values()))

    def __contains__(self, key: str) -> bool:
        return key in self._own

    def size(self, key: str) -> int:
        """Bytes of one of the client's items; 0 if it is not here."""
        return self._own.get(key, 0)

    def put(self, key: str, size: int) -> None:
        """Keep an item of this many bytes, or add them to one that is here; older ones may have to go."""
        sizes = self._sizes.setdefault(owner.get(), {})
        sizes[key] = sizes.get(key, 0) + size
        for oldest in list(sizes):
            if len(sizes) <= self._most and sum(sizes.values()) <= self._most_bytes:
                break
            if oldest != key and (owner.get(), oldest) not in self._pinned:
                self.drop(oldest)

    def pin(self, key: str) -> None:
        """Keep an item until it is unpinned, whatever else comes."""
        self._pinned.add((owner.get(), key))

    def unpin(self, key: str) -> None:
        """From now on it may go."""
        self._pinned.discard((owner.get(), key))

    def drop(self, key: str) -> None:
        """Forget an item."""
        self.unpin(key)
        own = self._own
        own.pop(key, None)
        if not own:
            self._sizes.pop(owner.get(), None)
        self._forget(key)

    @property
    def _own(self) -> dict[str, int]:
        return self._sizes.get(owner.get(), {})
