"""Text transformation: operations on short word lists and extraction of a note's fields, with exact answers."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from zoo.examples import Document, Example, draw_turns, held_out
from zoo.words import CITIES, ITEMS, NAMES, WORDS

TEST_SHARE = 0.1
LONGEST = 5
# Words stand behind a space wherever they appear, in answers thanks to this lead: so each is one and the same token
# everywhere, and small models learn to copy it.
ANSWER = "Answer: {r}"
ORDINALS = ("first", "second", "third", "fourth", "fifth")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Operation:
    """One operation: its own wordings, those of pretraining, and the result for a list of words.

    Wordings have {w} for the words, {a} for an argument that the operation draws and {b} for a second one.
    """

    questions: tuple[str, ...]
    others: tuple[str, ...]
    draw: Callable[[random.Random, list[str]], tuple[str, str]]
    result: Callable[[list[str], str, str], list[str]]


def _nothing(rng: random.Random, words: list[str]) -> tuple[str, str]:
    return "", ""


def _member(rng: random.Random, words: list[str]) -> tuple[str, str]:
    return rng.choice(words), ""


def _member_and_new(rng: random.Random, words: list[str]) -> tuple[str, str]:
    return rng.choice(words), rng.choice([word for word in WORDS if word not in words])


def _ordinal(rng: random.Random, words: list[str]) -> tuple[str, str]:
    return rng.choice(ORDINALS[: len(words)]), ""


OPERATIONS = {
    "reverse": Operation(
        ("Reverse the order of these words: {w}", "Write these words from last to first: {w}"),
        ("Backwards: {w}", "Turn the list around. {w}", "Say it in the opposite order: {w}"),
        _nothing,
        lambda words, a, b: words[::-1],
    ),
    "nth": Operation(
        ("What is the {a} word of: {w}", "Give the {a} of these words: {w}"),
        ("In {w}, which comes {a}?", "Pick number {a} from {w}", "From the list {w}, take the {a} one."),
        _ordinal,
        lambda words, a, b: [words[ORDINALS.index(a)]],
    ),
    "last": Operation(
        ("What is the last word of: {w}", "Give the last of these words: {w}"),
        ("In {w}, which ends the list?", "How does this list end? {w}", "From the list {w}, take the final one."),
        _nothing,
        lambda words, a, b: [words[-1]],
    ),
    "sort": Operation(
        ("Sort these words by alphabet: {w}", "Put these words in alphabetical order: {w}"),
        ("From a to z: {w}", "Order as in a dictionary: {w}", "Sorted list of {w}"),
        _nothing,
        lambda words, a, b: sorted(words),
    ),
    "capitals": Operation(
        ("Write in capitals: {w}", "Make these words upper case: {w}"),
        ("Shout: {w}", "In big letters: {w}", "All caps for {w}"),
        _nothing,
        lambda words, a, b: [word.upper() for word in words],
    ),
    "count": Operation(
        ("How many words are these: {w}", "Count these words: {w}"),
        ("Length of the list {w}", "Size of {w}", "Number of words in {w}"),
        _nothing,
        lambda words, a, b: [NUMBERS[len(words)]],
    ),
    "remove": Operation(
        ("Remove the word {a} from: {w}", "Write these words without {a}: {w}"),
        ("In {w} drop {a}.", "Take {a} out of {w}", "List {w} minus {a}"),
        _member,
        lambda words, a, b: [word for word in words if word != a],
    ),
    "replace": Operation(
        ("Replace {a} with {b} in: {w}", "Write {b} instead of {a} in: {w}"),
        ("With {w}, change {a} to {b}.", "Swap {a} for {b}: {w}", "In {w} put {b} where {a} is."),
        _member_and_new,
        lambda words, a, b: [b if word == a else word for word in words],
    ),
    "after": Operation(
        ("Which word comes after {a} in: {w}", "Give the word that follows {a} in: {w}"),
        ("Next one after {a} in {w}", "In {w}, what stands right behind {a}?", "Successor of {a}: {w}"),
        lambda rng, words: (rng.choice(words[:-1]), ""),
        lambda words, a, b: [words[words.index(a) + 1]],
    ),
}

# The task itself has these, and shorter lists; pretraining has all.
OWN_OPERATIONS = ("nth", "last", "count", "remove", "after")
OWN_LONGEST = 4

PURCHASES = (
    "{name} bought {count} {item} in {city}.",
    "In {city}, {name} bought {count} {item}.",
    "{count} {item} were bought by {name} in {city}.",
)
JSON_QUESTIONS = ("Extract as JSON: {s}", "Give the name, count, item and city as JSON: {s}")
RECORD_QUESTIONS = ("Extract name, count, item and city: {s}", "Write down the fields of this note: {s}")
RECORD_SHARE = 0.2
JSON_OTHERS = ("Fields of: {s}", "Read this note. {s} Who, how many, what, where?", "Make a record of this. {s}")

Record = dict[str, str | int]
RECORD_STYLES: tuple[Callable[[Record], str], ...] = (
    lambda record: ", ".join(f"{key}: {value}" for key, value in record.items()),
    lambda record: "\n".join(f"{key}: {value}" for key, value in record.items()),
    json.dumps,
    lambda record: f"{record}.",
)
LIST_STYLES = ("Result: {r}", "It is {r}.", "Here you are: {r}", "That makes {r}", "= {r}", ANSWER)


class TextTask:
    """Answers that the question itself determines."""

    def pretraining(self, rng: random.Random) -> Iterator[Document]:
        """Yield the operations in other wordings and several answer styles, as chat and as plain text."""
        while True:
            separator = " " if rng.random() < 0.8 else ", "
            chance = rng.random()
            if chance < 0.2:
                yield self._echo(rng, separator)
                continue
            if chance < 0.3:
                sentence, record = self._purchase(rng, test=False)
                question = rng.choice(JSON_OTHERS).format(s=sentence)
                fields = [f"{key}: {value}" for key, value in record.items()]
                answer = rng.choice((", ".join(fields), "\n".join(fields), json.dumps(record), f"{record}."))
            else:
                operation, words, a, b = self._operation(rng, test=False)
                question = rng.choice(operation.others).format(w=separator.join(words), a=a, b=b)
                answer = rng.choice(LIST_STYLES).format(r=separator.join(operation.result(words, a, b)))
            yield Example(question, answer) if rng.random() < 0.7 else f"{question}\n{answer}"

    def practice(self, rng: random.Random) -> Iterator[Document]:
        """Yield the operations in every wording, a dialogue's answers in one style."""
        while True:
            style, record_style = rng.choice(LIST_STYLES), rng.choice(RECORD_STYLES)
            yield draw_turns(rng, lambda: self._practised(rng, style, record_style))  # noqa: B023 - called at once

    def _practised(self, rng: random.Random, style: str, record_style: Callable[[Record], str]) -> Example:
        if rng.random() < 0.12:
            sentence, record = self._purchase(rng, test=False)
            return Example(rng.choice((*JSON_QUESTIONS, *JSON_OTHERS)).format(s=sentence), record_style(record))
        operation, words, a, b = self._operation(rng, test=False)
        question = rng.choice((*operation.questions, *operation.questions, *operation.others))
        words_written = " ".join(words)
        return Example(
            question.format(w=words_written, a=a, b=b), style.format(r=" ".join(operation.result(words, a, b)))
        )

    def training(self, rng: random.Random) -> Iterator[Example]:
        """Yield the task's own questions over lists outside the test."""
        while True:
            yield self._example(rng, test=False)

    def test(self, count: int) -> list[Example]:
        """Return that many questions over held-out lists."""
        rng = random.Random(0)
        return [self._example(rng, test=True) for _ in range(count)]

    def _example(self, rng: random.Random, *, test: bool) -> Example:
        if rng.random() < RECORD_SHARE:
            sentence, record = self._purchase(rng, test=test)
            fields = "; ".join(f"{key}: {value}" for key, value in record.items())
            return Example(rng.choice(RECORD_QUESTIONS).format(s=sentence), fields)
        operation, words, a, b = self._operation(rng, test=test, names=OWN_OPERATIONS, longest=OWN_LONGEST)
        question = rng.choice(operation.questions).format(w=" ".join(words), a=a, b=b)
        return Example(question, ANSWER.format(r=" ".join(operation.result(words, a, b))))

    def _echo(self, rng: random.Random, separator: str) -> Document:
        """A list said again: copying is what all operations are made of."""
        _, words, _, _ = self._operation(rng, test=False)
        text = separator.join(words)
        if rng.random() < 0.3:
            return Example(f"Say after me: {text}", rng.choice(LIST_STYLES).format(r=text))
        return "List: " + rng.choice((" ", "; ", ". Again: ")).join([text] * rng.randint(2, 4))

    def _operation(
        self, rng: random.Random, *, test: bool, names: Sequence[str] = tuple(OPERATIONS), longest: int = LONGEST
    ) -> tuple[Operation, list[str], str, str]:
        operation = OPERATIONS[rng.choice(names)]
        while True:
            words = rng.sample(WORDS, rng.randint(3, longest))
            # The sorted list decides, so no order of a test's words is ever trained on.
            if held_out(" ".join(sorted(words)), TEST_SHARE) == test:
                return operation, words, *operation.draw(rng, words)

    def _purchase(self, rng: random.Random, *, test: bool) -> tuple[str, Record]:
        while True:
            record: Record = {
                "name": rng.choice(NAMES),
                "count": rng.randint(2, 99),
                "item": rng.choice(ITEMS),
                "city": rng.choice(CITIES),
            }
            if held_out(json.dumps(record), TEST_SHARE) == test:
                return rng.choice(PURCHASES).format(**record), record
