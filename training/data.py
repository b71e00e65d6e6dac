"""The examples that an expert learns from: lines of JSON, checked one by one, and the part of them that is held out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from server.errors import ConfigError, nearest

ROLES = ("system", "developer", "user", "assistant")
KEYS = ("messages", "prompt", "completion")
SHAPES = '{"messages": [{"role": "user", "content": ...}, ...]} or {"prompt": ..., "completion": ...}'
LEAST_TRAINED, LEAST_HELD_OUT, MOST_HELD_OUT = 8, 4, 200

Turns = tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Example:
    """A conversation up to one answer, and the answer, which alone is learned."""

    file: Path
    line: int
    """Where it stands in its file, from 1."""
    turns: Turns
    answer: str

    @property
    def question(self) -> str:
        """The conversation as one text that equal ones share."""
        return json.dumps(self.turns, ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True)
class Data:
    """What is trained on and what is held out."""

    trained: list[Example]
    held_out: list[Example]
    digest: str
    """SHA-256 of the files' bytes."""


def read_data(path: Path, held_out: Path | None, share: float, seed: int) -> Data:
    """Read a data set, and hold out a share of its questions, or take the held-out part from a file of its own.

    Examples that ask the same stay on one side.

    Raises:
        ConfigError: a file or one of its lines is not as it should be, there are too few examples, or a question of
            the held-out file is trained on.
    """
    content = _read(path)
    examples, digest = _examples(path, content), sha256(content)
    if held_out is None:
        trained, kept = _split(examples, share, random.Random(seed))
    else:
        content = _read(held_out)
        trained, kept = examples, _examples(held_out, content)
        digest.update(content)
        known = {example.question: example.line for example in trained}
        for example in kept:
            if example.question in known:
                raise ConfigError(
                    f"{held_out}:{example.line}: its prompt is trained on, in line {known[example.question]} of "
                    f"{path}; a held-out example must ask something else"
                )
    for found, least, what in ((trained, LEAST_TRAINED, "train on"), (kept, LEAST_HELD_OUT, "hold out")):
        if len(found) < least:
            raise ConfigError(
                f"{path if found is trained or held_out is None else held_out}: at least {least} examples with "
                f"different prompts are needed to {what}; there are {len(found)}"
            )
    return Data(trained, kept[:MOST_HELD_OUT], digest.hexdigest())


def read_examples(path: Path) -> list[Example]:
    """Return the examples in a file of JSON lines, one for every answer.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8, or holds no example, or a line is none.
    """
    return _examples(path, _read(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _examples(path: Path, content: bytes) -> list[Example]:
    examples: list[Example] = []
    for number, raw in enumerate(content.split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{path}:{number}: not UTF-8 text; save the file in that encoding") from None
        if line.strip():
            try:
                examples += [Example(path, number, turns, answer) for turns, answer in _answers(_row(line))]
            except ValueError as error:
                raise ConfigError(f"{path}:{number}: {error}") from None
    if not examples:
        raise ConfigError(f"{path}: there is no example in it; each line is one, as {SHAPES}")
    return examples


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}; each line is one example") from None
    if not isinstance(row, dict):
        raise ValueError(f"an example is an object, not a {type(row).__name__}: {SHAPES}")
    return row


def _answers(row: dict[str, Any]) -> Iterator[tuple[Turns, str]]:
    """The conversations of a line that end in an answer."""
    if "messages" in row:
        turns = [_turn(number, message) for number, message in enumerate(_list("messages", row["messages"]))]
        if not any(turn["role"] == "assistant" for turn in turns):
            raise ValueError("messages: none is the assistant's, so there is nothing to learn")
        for number, turn in enumerate(turns):
            if turn["role"] == "assistant":
                if not number:
                    raise ValueError("messages.0: the assistant answers nobody; a user's message comes first")
                yield tuple(turns[:number]), _text(f"messages.{number}.content", turn["content"])
    elif "prompt" in row and "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, list):
            answer = _list("completion", completion)
            yield from _answers({"messages": [*prompt, *answer]})
        else:
            turns = [{"role": "user", "content": _text("prompt", prompt)}]
            yield tuple(turns), _text("completion", completion)
    else:
        strange = next((key for key in row if key not in KEYS), None)
        hint = "" if strange is None else f" ('{strange}': {nearest(strange, KEYS)})"
        raise ValueError(f"it has neither messages nor prompt and completion{hint}; an example is {SHAPES}")


def _turn(number: int, message: Any) -> dict[str, str]:
    where = f"messages.{number}"
    if not isinstance(message, dict):
        raise ValueError(f'{where}: a message is {{"role": ..., "content": ...}}, not {message!r:.60}')
    role = message.get("role")
    if role not in ROLES:
        raise ValueError(f"{where}.role: {role!r} is not one of {', '.join(ROLES)}")
    content = message.get("content")
    if not isinstance(content, str):
        raise ValueError(f"{where}.content: a text is needed, not {content!r:.60}")
    return {"role": role, "content": content}


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: a list of messages is needed, not {value!r:.60}")
    return value


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: a text that is not empty is needed, not {value!r:.60}")
    return value


def _split(examples: Sequence[Example], share: float, rng: random.Random) -> tuple[list[Example], list[Example]]:
    """Whole groups of examples that ask the same, in random order, until the share is held out."""
    groups: dict[str, list[Example]] = {}
    # All answers of a conversation go together: the later ones hold the earlier ones.
    first = {example.line: example.question for example in reversed(examples)}
    for example in examples:
        groups.setdefault(first[example.line], []).append(example)
    order = list(groups.values())
    rng.shuffle(order)
    kept: list[Example] = []
    wanted = min(max(share * len(examples), LEAST_HELD_OUT), MOST_HELD_OUT)
    while order and len(kept) < wanted:
        kept += order.pop()
    return [example for group in order for example in group], kept


def as_rows(examples: Iterable[Example]) -> Iterator[str]:
    """The examples as lines that `logit-fusion eval` asks."""
    for example in examples:
        yield json.dumps({"messages": example.turns, "answer": example.answer}, ensure_ascii=False) + "\n"
