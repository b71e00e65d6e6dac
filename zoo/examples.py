"""What training text is made of: plain documents and question-answer pairs, and the split that keeps tests apart."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One user question and the assistant's answer to it."""

    question: str
    answer: str


Document = str | Example


class Task(Protocol):
    """A seen task: what pretraining may read about it, what its expert is fine-tuned on, what tests it."""

    def pretraining(self, rng: random.Random) -> Iterator[Document]:
        """Endless documents in other wordings and answer styles than the task's own."""

    def training(self, rng: random.Random) -> Iterator[Document]:
        """Endless fine-tuning documents; of questions and answers, the answers are learned."""

    def test(self, count: int) -> list[Example]:
        """The same held-out examples at every call."""


def held_out(key: str, share: float) -> bool:
    """Say whether a key belongs to the test side; the same answer for every seed, on every machine."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def cycle_shuffled(items: Sequence[T], rng: random.Random) -> Iterator[T]:
    """Yield all items in random order, then all again in another, without end."""
    order = list(items)
    while True:
        rng.shuffle(order)
        yield from order
