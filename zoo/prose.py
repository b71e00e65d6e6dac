"""Running text for pretraining: GSM8K's questions, MMLU's development questions, Python's own documentation."""

import ast
import gzip
import json
import random
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path

from zoo.examples import Example, cycle_shuffled, held_out

GSM8K_TRAIN, GSM8K_TEST = "gsm8k_train.jsonl.gz", "gsm8k_test.jsonl.gz"
# A document longer than this is cut into pieces.
LONGEST = 1500
# Share of GSM8K's training problems whose reasoning pretraining reads.
WORKED_SHARE = 0.5
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "idle_test", "pydoc_data"}


def read_gsm8k(file: Traversable | Path) -> list[Example]:
    """Read question and answer of every line of a gzipped JSONL file."""
    with file.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [Example(row["question"], row["answer"]) for row in rows]


@cache
def docstrings() -> tuple[str, ...]:
    """Collect the docstrings of the standard library of the Python that runs, in the order of their files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[str] = []
    for path in sorted(root.rglob("*.py")):
        if SKIPPED & set(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                found += [piece for piece in _pieces(text) if len(piece) > 80]
    return tuple(found)


def _pieces(text: str) -> Iterator[str]:
    """Cut a text at blank lines into pieces no longer than LONGEST, or little more."""
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) > LONGEST:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph[: 2 * LONGEST]
    if piece:
        yield piece


def worked_prose(examples: Sequence[Example], rng: random.Random) -> Iterator[str]:
    """Yield for the second stage: questions, half of them with their reasoning as running text, and docstrings."""
    worked = [
        f"{example.question} {reasoning(example.answer)}"
        for example in examples
        if held_out(f"worked:{example.question}", WORKED_SHARE)
    ]
    questions = [example.question for example in examples if not held_out(f"worked:{example.question}", WORKED_SHARE)]
    return cycle_shuffled([*worked, *questions, *docstrings()[::2]], rng)


def reasoning(answer: str) -> str:
    """A solution's sentences in one line, without the line that names the answer."""
    return " ".join(line for line in answer.splitlines() if not line.startswith("####"))


def prose(questions: Sequence[Example], rng: random.Random) -> Iterator[str]:
    """Yield questions (never their answers) and docstrings, all of them before any comes again."""
    return cycle_shuffled([*(example.question for example in questions), *docstrings()], rng)
