"""The unseen task: multiple choice in wordings that no training text has, over what all three seen tasks are about."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from zoo.tasks.facts import POPULAR, Fact, load_facts
from zoo.words import WORDS

CHOICES = 4
FACTS = {
    "region": "{x} is part of which country: {c}?",
    "alpha2": "Choose the short code that {x} has: {c}?",
    "alpha3": "Choose the long code that {x} has: {c}?",
    "currency": "Choose the code that banks use for the {x}: {c}?",
    "language": "Choose the code that libraries use for {x}: {c}?",
}
SUM = "Choose the right result for {e}: {c}?"
WORD_QUESTIONS: tuple[tuple[str, Callable[[list[str]], str]], ...] = (
    ("Which of these would a dictionary show before the others: {c}?", min),
    ("Which of these would a dictionary show behind the others: {c}?", max),
)


@dataclass(frozen=True)
class Choice:
    """One question, what there is to choose from, and the position of the right choice."""

    question: str
    choices: tuple[str, ...]
    answer: int


def quiz(count: int) -> list[Choice]:
    """Return that many questions, a third each about facts, sums and words; the same at every call.

    The facts are those that are asked in no training text.
    """
    rng = random.Random(0)
    facts = load_facts()
    asked = rng.sample([fact for fact in facts if fact.is_test and fact.weight == POPULAR], count // 3 + 1)
    drawers: tuple[Callable[[int], Choice], ...] = (
        lambda number: _fact(asked[number], facts, rng),
        lambda number: _sum(rng),
        lambda number: _words(rng),
    )
    return [drawers[number % 3](number // 3) for number in range(count)]


def _fact(fact: Fact, facts: list[Fact], rng: random.Random) -> Choice:
    values = sorted({other.value for other in facts if other.kind == fact.kind} - {fact.value})
    return _choice(FACTS[fact.kind].replace("{x}", fact.subject), fact.value, rng.sample(values, CHOICES - 1), rng)


def _sum(rng: random.Random) -> Choice:
    while True:
        a, b = rng.randint(2, 60), rng.randint(2, 40)
        value = a + b if rng.random() < 0.5 else a - b
        if 0 < value < 100:
            break
    near = [other for other in range(max(1, value - 12), value + 13) if other != value]
    expression = f"{a} + {b}" if value == a + b else f"{a} - {b}"
    return _choice(SUM.replace("{e}", expression), str(value), [str(n) for n in rng.sample(near, CHOICES - 1)], rng)


def _words(rng: random.Random) -> Choice:
    question, right = rng.choice(WORD_QUESTIONS)
    words = rng.sample(WORDS, CHOICES)
    answer = right(words)
    return _choice(question, answer, [word for word in words if word != answer], rng)


def _choice(question: str, right: str, wrong: list[str], rng: random.Random) -> Choice:
    choices = rng.sample([right, *wrong], CHOICES)
    listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
    return Choice(question.format(c=listed), tuple(choices), choices.index(right))
