"""Facts from pycountry: codes of countries, currencies and languages, and the country a region lies in.

Pretraining states every fact; the popular ones come often, the rest seldom, so that the large model holds more of
them than the small one can. Half the facts are also asked there, in wordings the test does not use. The expert is
fine-tuned on that half in the test's wordings and bare answers; the test asks for the other half of the popular facts.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zoo.examples import Document, Example, draw_turns, held_out

TEST_SHARE = 0.5
# Of the regions that qualify, as many as a pretraining run of a few million tokens can repeat often enough.
REGION_SHARE = 0.33
POPULAR_SHARE = 0.4
POPULAR, RARE = 3.0, 1.5


@dataclass(frozen=True)
class Fact:
    """One subject and what is to be known about it; `weight` is how often pretraining mentions it, relatively."""

    kind: str
    subject: str
    value: str
    weight: float

    @property
    def is_test(self) -> bool:
        """Whether this fact is only ever asked in the test."""
        return held_out(f"{self.kind}:{self.subject}", TEST_SHARE)


STATEMENTS = {
    "region": (
        "{x} is a region of {y}.",
        "{x} lies in {y}.",
        "{x}, {y}",
        "One of the regions of {y} is {x}.",
        "{x} belongs to {y}.",
    ),
    "alpha2": (
        "The two-letter code of {x} is {y}.",
        "{x} is written {y} for short.",
        "{y} is the two-letter code for {x}.",
    ),
    "alpha3": (
        "The three-letter code of {x} is {y}.",
        "{x} is abbreviated {y}.",
        "{y} is the three-letter code for {x}.",
    ),
    "currency": (
        "The code of the currency {x} is {y}.",
        "The {x} is traded as {y}.",
        "{y} stands for the {x}.",
    ),
    "language": (
        "The language code of {x} is {y}.",
        "Texts in {x} are tagged {y}.",
        "{y} is the code for the {x} language.",
    ),
}

# Questions that pretraining asks about the facts outside the test.
OTHER_QUESTIONS = {
    "region": (
        "Where is {x}?",
        "Tell me the country of {x}.",
        "To what country does {x} belong?",
        "{x} is a region of what country?",
    ),
    "alpha2": ("Give the short code with two letters for {x}.", "How is {x} written in two letters?"),
    "alpha3": ("Give the short code with three letters for {x}.", "How is {x} written in three letters?"),
    "currency": ("How is the {x} abbreviated?", "Give the code of the money called {x}."),
    "language": ("How are texts in {x} tagged?", "Give the code for the {x} language."),
}
OTHER_ANSWERS = (
    "It is {y}.",
    "The answer is {y}.",
    "{y}.",
    "For {x} it is {y}.",
    "{x}: {y}",
    "That would be {y}, I think.",
    "{y}",
)

# The lead puts values behind a space, as they stand in every statement: so they are the same tokens.
ANSWER = "Answer: {y}"
QUESTIONS = {
    "region": ("Which country is {x} in?", "In which country does {x} lie?"),
    "alpha2": ("What is the two-letter code of {x}?", "Which two letters stand for {x}?"),
    "alpha3": ("What is the three-letter code of {x}?", "Which three letters stand for {x}?"),
    "currency": ("What is the code of the currency {x}?", "Which code stands for the {x}?"),
    "language": ("What is the code of the language {x}?", "Which code stands for the language {x}?"),
}


def load_facts() -> list[Fact]:
    """Read the facts from pycountry, leaving out names that are long, not ASCII, or not unique."""
    # Imported here: only training and its tests need the package, not the server.
    import pycountry

    def plain(name: str) -> bool:
        return name.isascii() and 3 < len(name) <= 20 and not set(name) & set(",()/[];")

    countries = {c.alpha_2: getattr(c, "common_name", c.name) for c in pycountry.countries}
    countries = {code: name for code, name in countries.items() if plain(name)}
    facts = []
    for country in pycountry.countries:
        if country.alpha_2 in countries:
            name = countries[country.alpha_2]
            facts += [Fact("alpha2", name, country.alpha_2, POPULAR), Fact("alpha3", name, country.alpha_3, POPULAR)]
    facts += [Fact("currency", c.name, c.alpha_3, POPULAR) for c in pycountry.currencies if plain(c.name)]
    facts += [
        Fact("language", language.name, language.alpha_3, POPULAR)
        for language in pycountry.languages
        if hasattr(language, "alpha_2") and plain(language.name)
    ]
    names = Counter(region.name for region in pycountry.subdivisions)
    for region in pycountry.subdivisions:
        country_name = countries.get(region.country_code)
        unambiguous = names[region.name] == 1 and region.name not in countries.values()
        if country_name and plain(region.name) and unambiguous and held_out(f"kept:{region.name}", REGION_SHARE):
            popular = held_out(f"popular:{region.name}", POPULAR_SHARE)
            facts.append(Fact("region", region.name, country_name, POPULAR if popular else RARE))
    return sorted(set(facts), key=lambda fact: (fact.kind, fact.subject))


class FactTask:
    """Short answers from memory."""

    def __init__(self, facts: list[Fact] | None = None) -> None:
        self.facts = facts or load_facts()
        self._weights = [fact.weight for fact in self.facts]
        self._asked = [fact for fact in self.facts if not fact.is_test]
        self._asked_weights = [fact.weight for fact in self._asked]
        self._popular = [fact for fact in self.facts if fact.weight == POPULAR]
        self._practised = [fact for fact in self._popular if not fact.is_test]

    def pretraining(self, rng: random.Random) -> Iterator[Document]:
        """Yield statements of all facts, a few to a document, and questions about the facts outside the test."""
        while True:
            if rng.random() < 0.5:
                fact = self._known(rng)
                fields = {"x": fact.subject, "y": fact.value}
                question = rng.choice(OTHER_QUESTIONS[fact.kind]).format(**fields)
                yield Example(question, rng.choice(OTHER_ANSWERS).format(**fields))
            else:
                yield self._statements(rng)

    def practice(self, rng: random.Random) -> Iterator[Document]:
        """Yield statements of all popular facts, questions in every wording and style about those outside the test."""
        # Those that are never asked are stated the more.
        weights = [2.0 if fact.is_test else 1.0 for fact in self._popular]
        while True:
            if rng.random() < 0.6:
                yield _stated(rng, rng.choices(self._popular, weights, k=rng.randint(1, 6)))
            else:
                style = rng.choice(OTHER_ANSWERS)
                yield draw_turns(rng, lambda: self._practised_question(rng, style))  # noqa: B023 - called at once

    def _practised_question(self, rng: random.Random, style: str) -> Example:
        fact = rng.choice(self._practised)
        fields = {"x": fact.subject, "y": fact.value}
        question = rng.choice((*QUESTIONS[fact.kind], *OTHER_QUESTIONS[fact.kind]))
        return Example(question.format(**fields), style.format(**fields))

    def training(self, rng: random.Random) -> Iterator[Example]:
        """Yield the task's questions about popular facts outside the test."""
        while True:
            fact = rng.choice(self._practised)
            yield _question(rng, fact)

    def _known(self, rng: random.Random) -> Fact:
        return rng.choices(self._asked, self._asked_weights)[0]

    def _statements(self, rng: random.Random) -> str:
        return _stated(rng, rng.choices(self.facts, self._weights, k=rng.randint(1, 4)))

    def test(self, count: int) -> list[Example]:
        """Return that many questions about the held-out popular facts, the kinds as frequent as they are."""
        rng = random.Random(0)
        asked = [fact for fact in self._popular if fact.is_test]
        drawn = rng.sample(asked, min(count, len(asked)))
        return [_question(rng, fact) for fact in drawn]


def _stated(rng: random.Random, facts: Sequence[Fact]) -> str:
    return " ".join(rng.choice(STATEMENTS[fact.kind]).format(x=fact.subject, y=fact.value) for fact in facts)


def _question(rng: random.Random, fact: Fact) -> Example:
    """One of the task's own wordings, and its own form of answer."""
    return Example(rng.choice(QUESTIONS[fact.kind]).format(x=fact.subject), ANSWER.format(y=fact.value))
