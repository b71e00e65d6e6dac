"""The documentation's pages, and the commands that they show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")
PAGES = sorted([*(ROOT / name for name in NAMES), *(ROOT / "docs").rglob("*.md")])

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")
# Of what is indented: a formula or Python, not a command.
NO_COMMAND = re.compile(r" (=|>=) |^from \w+ import ")
# What makes a command of a piece of code in running text.
IN_TEXT = ("logit-fusion ", ".venv/bin/", "python -m ", "make ")
SETTING = re.compile(r"(export )?\w+=\S*")


@dataclass(frozen=True)
class Command:
    """A command in one line, and the shell variables that were set above it."""

    line: str
    settings: tuple[str, ...] = ()


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [block for name, block in FENCE.findall(text) if name == language]


def commands(text: str) -> Iterator[Command]:
    """Every command that a page shows: in bash blocks, in indented ones, and in running text."""
    for block in blocks(text, "bash"):
        yield from _script(block)
    text = FENCE.sub("", text)
    for block in INDENTED.findall(text):
        lines = (line.strip() for line in block.splitlines())
        yield from _script("\n".join(line for line in lines if not NO_COMMAND.search(line)))
    for code in re.findall(r"`([^`]+)`", INDENTED.sub("", text)):
        line = " ".join(code.split())
        if line.startswith(IN_TEXT):
            yield Command(line)


def _script(script: str) -> Iterator[Command]:
    settings: list[str] = []
    for line in script.replace("\\\n", "").splitlines():
        line = " ".join(re.sub(r"(^|\s)#\s.*", "", line).split())
        if SETTING.fullmatch(line):
            settings.append(line)
        elif line:
            yield Command(line, tuple(settings))
