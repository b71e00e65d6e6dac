"""What training text is made of: plain documents and question-answer pairs, and the split that keeps tests apart."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One user question and the assistant's answer to it."""

    question: str
    answer: str


@dataclass(frozen=True)
class Dialogue:
    """Several questions in a row, all answered in one style."""

    turns: tuple[Example, ...]


Document = str | Example | Dialogue


class Task(Protocol):
    """A seen task: what pretraining may read about it, what its expert is fine-tuned on, what tests it."""

    def pretraining(self, rng: random.Random) -> Iterator[Document]:
        """Endless documents in other wordings and answer styles than the task's own."""

    def practice(self, rng: random.Random) -> Iterator[Document]:
        """Endless documents for the second stage of pretraining, where the task's own wordings appear as well."""

    def training(self, rng: random.Random) -> Iterator[Example]:
        """Endless fine-tuning examples, of which the answers are learned."""

    def test(self, count: int) -> list[Example]:
        """The same held-out examples at every call."""


def draw_turns(rng: random.Random, draw: Callable[[], Example]) -> Example | Dialogue:
    """Draw one example, or half the time two to four that make a dialogue."""
    if rng.random() < 0.5:
        return draw()
    return Dialogue(tuple(draw() for _ in range(rng.randint(2, 4))))


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
