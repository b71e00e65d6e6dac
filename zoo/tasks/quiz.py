"""The unseen task: multiple choice in wordings that no training text has, over what all three seen tasks are about."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from zoo.examples import held_out
from zoo.tasks.facts import POPULAR, Fact, load_facts
from zoo.tasks.text import ANSWER, TEST_SHARE
from zoo.words import WORDS

CHOICES = 4
FACTS = {
    "region": "{x} is part of which country?",
    "alpha2": "Say the short code that {x} has.",
    "alpha3": "Say the long code that {x} has.",
    "currency": "Which code do banks use for the {x}?",
    "language": "Which code do libraries use for {x}?",
}
SUM = "Which number is {e}?"
# The question, and the positions in the list of the word that it names and of the right one.
WORD_QUESTIONS = (
    ("Which word stands at the very end of: {w}", 0, 3),
    ("Which word stands to the right of {a} in: {w}", 0, 1),
    ("Which word stands to the right of {a} in: {w}", 1, 2),
    ("Which word stands to the right of {a} in: {w}", 2, 3),
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
    return _choice(SUM.format(e=expression), str(value), [str(n) for n in rng.sample(near, CHOICES - 1)], rng)


def _words(rng: random.Random) -> Choice:
    question, named, right = rng.choice(WORD_QUESTIONS)
    while True:
        words = rng.sample(WORDS, CHOICES)
        if held_out(" ".join(sorted(words)), TEST_SHARE):  # as the text task splits its lists
            break
    wrong = [word for word in words if word != words[right]]
    return _choice(question.format(a=words[named], w=" ".join(words)), words[right], wrong, rng)


def _choice(question: str, right: str, wrong: list[str], rng: random.Random) -> Choice:
    choices = rng.sample([right, *wrong], CHOICES)
    return Choice(question, tuple(ANSWER.format(r=choice) for choice in choices), choices.index(right))
