"""The files that `logit-fusion eval` asks: held-out examples of every task, and a few training ones for prompts.

python -m zoo.held_out [FOLDER]
"""

import json
import random
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from zoo.build import DATA
from zoo.examples import Task
from zoo.prose import GSM8K_TEST, GSM8K_TRAIN, read_gsm8k
from zoo.tasks import FactTask, MathTask, TextTask
from zoo.tasks.quiz import quiz

COUNTS = {"math": 150, "facts": 300, "text": 200}
QUIZ = 240
SHOTS = 8


def write(folder: Path) -> None:
    """Write the files into a folder; every call writes the same."""
    tasks: dict[str, Task] = {
        "math": MathTask(read_gsm8k(DATA / GSM8K_TRAIN), avoid=read_gsm8k(DATA / GSM8K_TEST)),
        "facts": FactTask(),
        "text": TextTask(),
    }
    for name, task in tasks.items():
        _write(folder / f"{name}.jsonl", map(asdict, task.test(COUNTS[name])))
        shots = islice(task.training(random.Random(f"shots {name}")), SHOTS)
        _write(folder / f"{name}-train.jsonl", map(asdict, shots))
    _write(folder / "quiz.jsonl", map(asdict, quiz(QUIZ)))


def _write(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "evaluation")
