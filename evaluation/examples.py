"""Examples: the rows of a task's file, turned into prompts, answers and choices."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from evaluation.suite import Suite, Task
from server.errors import ConfigError, nearest


@dataclass(frozen=True)
class Example:
    """One question of a task. `right` is the position of the right choice; without choices there is none."""

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    right: int | None = None
    before: tuple[dict[str, str], ...] = ()
    """Messages that stand before the prompt, which is the last one."""


def load_examples(suite: Suite) -> dict[str, list[Example]]:
    """Return each task's examples.

    Raises:
        ConfigError: a row is no JSON object, lacks a field, or does not fit the task's metric.
    """
    return {name: read_examples(name, task, task.data, task.limit) for name, task in suite.tasks.items()}


def read_examples(name: str, task: Task, path: Path, limit: int | None) -> list[Example]:
    """Return at most the first `limit` examples of a file, read as one task says.

    Raises:
        ConfigError: as for `load_examples`.
    """
    examples: list[Example] = []
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if limit is not None and len(examples) == limit:
                break
            if line.strip():
                try:
                    examples.append(_example(task, _row(line)))
                except ValueError as error:
                    raise ConfigError(f"{path}:{number}: task '{name}': {error}") from None
    if not examples:
        raise ConfigError(f"{path}: task '{name}': at least one example is needed; the file has none")
    return examples


def extract(task: Task, text: str) -> str | None:
    """Return the part of an answer that counts: the last match of the task's `extract`; None where nothing matches."""
    if task.extract is None:
        return text.strip()
    found = list(re.finditer(task.extract, text))
    return (found[-1][1] if found[-1].re.groups else found[-1][0]).strip() if found else None


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise ValueError(f"one JSON object is needed on each line, not a {type(row).__name__}")
    return row


def _example(task: Task, row: Mapping[str, Any]) -> Example:
    answer = _filled("answer", task, row)
    before: list[dict[str, str]] = []
    if task.messages is None:
        prompt = _filled("prompt", task, row)
    else:
        *before, prompt = _conversation(task, _value("messages", task.messages, row))
    if task.choices is None:
        if task.metric == "exact" and extract(task, answer) is None:
            raise ValueError(f"extract {task.extract!r} finds nothing in the right answer {answer!r:.100}")
        return Example(prompt, answer, before=tuple(before))
    found = _value("choices", task.choices, row)
    if not isinstance(found, list) or len(found) < 2:
        raise ValueError(f"choices: field '{task.choices}' must be a list of two texts or more, not {found!r:.100}")
    choices = tuple(_cleaned(task, str(choice)) for choice in found)
    right = _right(task, row, answer, choices)
    return Example(prompt, choices[right], choices, right, tuple(before))


def _conversation(task: Task, found: Any) -> list[Any]:
    """The messages but the last, and the last one's content, which is the user's."""
    if not isinstance(found, list) or not found:
        raise ValueError(f"messages: field '{task.messages}' must be a list of messages, not {found!r:.100}")
    for message in found:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError(
                f'messages: a message is {{"role": ..., "content": ...}}, both texts, not {message!r:.100}'
            )
    if not task.chat:
        # Without a chat's form the conversation is one text.
        return ["\n\n".join(message["content"] for message in found)]
    if found[-1]["role"] != "user":
        raise ValueError(f"messages: the last one must be the user's, not the {found[-1]['role']}'s")
    return [*({key: message[key] for key in ("role", "content")} for message in found[:-1]), found[-1]["content"]]


def _right(task: Task, row: Mapping[str, Any], answer: str, choices: tuple[str, ...]) -> int:
    """The position of the right choice: an integer field says it, any other answer is the choice's text."""
    field = re.fullmatch(r"\{(\w+)\}", task.answer)
    position = row[field[1]] if field else None
    if isinstance(position, int) and not isinstance(position, bool):
        if not 0 <= position < len(choices):
            raise ValueError(f"answer: {position} is not the position of a choice, 0 to {len(choices) - 1}")
        return position
    if choices.count(answer) != 1:
        raise ValueError(f"answer: {answer!r:.100} must be one of the choices, exactly once")
    return choices.index(answer)


def _filled(key: str, task: Task, row: Mapping[str, Any]) -> str:
    """A template of the task with the row's fields put in."""
    text = ""
    try:
        parts = list(Formatter().parse(getattr(task, key)))
    except ValueError as error:
        raise ValueError(f"{key}: {error}; write a brace of the text twice") from None
    for literal, field, spec, conversion in parts:
        if spec or conversion:
            raise ValueError(f"{key}: only a field's name may stand between braces; write a brace of the text twice")
        text += literal + ("" if field is None else _cleaned(task, str(_value(key, field, row))))
    return text


def _value(key: str, field: str, row: Mapping[str, Any]) -> Any:
    if field not in row:
        raise ValueError(f"{key}: there is no field '{field}'; {nearest(field, row)}")
    return row[field]


def _cleaned(task: Task, text: str) -> str:
    return re.sub(task.remove, "", text) if task.remove is not None else text
