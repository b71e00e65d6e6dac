"""Repetitions: random words from the prose, said again and again, which teach a model to copy from its context."""

import random
from collections.abc import Iterator, Sequence


def echoes(texts: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Yield documents of a few random words each, repeated; numbers are among the words."""
    while True:
        words = [rng.choice(rng.choice(texts).split()) for _ in range(rng.randint(3, 20))]
        words = [str(rng.randint(1, 999)) if rng.random() < 0.15 else word for word in words]
        yield "List: " + " ".join(words * rng.randint(3, 6))
