"""What prompts of their own do to a real model, SmolLM2-135M-Instruct: does it follow what it is told more often?

    python -m bench.recipes

- context: a document says what is not so, and a question asks about it. Counted is how many answers say what the
  document says, and not what the model learned (context-aware decoding; preset `smollm2-faithful`).
- guidance: the system message asks for what a test can see, a subject or short answers (classifier-free guidance;
  preset `smollm2-guided`).

Each for several weights, greedy, with Wilson's intervals of 95 %; `alpha: 0` is the model alone.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from bench.results_file import store
from server.launcher import ServerProcess

CONFIG = Path(__file__).parents[1] / "zoo" / "smollm2.yaml"
ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0)
AT_ONCE = 8
TEMPLATES = (
    ("The capital of {} is {}.", "What is the capital of {}?"),
    ("{} has moved its government: its capital city is now {}.", "Which city is the capital of {}?"),
)
CAPITALS = (
    ("France", "Paris", "Lyon"), ("Germany", "Berlin", "Hamburg"), ("Italy", "Rome", "Milan"),
    ("Spain", "Madrid", "Seville"), ("Japan", "Tokyo", "Osaka"), ("China", "Beijing", "Shanghai"),
    ("Russia", "Moscow", "Kazan"), ("Canada", "Ottawa", "Toronto"), ("Egypt", "Cairo", "Alexandria"),
    ("Portugal", "Lisbon", "Porto"), ("Poland", "Warsaw", "Krakow"), ("Greece", "Athens", "Patras"),
    ("Austria", "Vienna", "Graz"), ("Sweden", "Stockholm", "Malmo"), ("Norway", "Oslo", "Bergen"),
    ("Ireland", "Dublin", "Cork"), ("India", "Delhi", "Mumbai"), ("Brazil", "Brasilia", "Recife"),
    ("Argentina", "Buenos Aires", "Rosario"), ("Mexico", "Mexico City", "Cancun"), ("Peru", "Lima", "Cusco"),
    ("Kenya", "Nairobi", "Mombasa"), ("Turkey", "Ankara", "Izmir"), ("Thailand", "Bangkok", "Phuket"),
)  # fmt: skip
QUESTIONS = (
    "What is the sun?", "Name an animal that lives in water.", "Why is the sky blue?", "What do bees make?",
    "Who was Albert Einstein?", "What is a computer?", "How do birds fly?", "What is the largest ocean?",
    "What is bread made of?", "Name a season of the year.", "What is music?", "Why do people sleep?",
    "What is a river?", "How many legs has a spider?", "What is the moon?", "Where do fish live?",
    "What is snow?", "Name a planet.", "What do cows eat?", "What is a book?",
)  # fmt: skip
FORMS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("You love cats. Whatever you are asked, you talk about cats.", lambda text: "cat" in text.lower()),
    (
        "You are a sailor. Whatever you are asked, you talk about the sea.",
        lambda text: _any(text, "sea", "ship", "sail"),
    ),
    ("You answer in a few words.", lambda text: len(text.split()) <= 8),
)
NEW_TOKENS = 32


def _any(text: str, *words: str) -> bool:
    return any(word in text.lower() for word in words)


Asked = tuple[list[dict[str, str]], Callable[[str], bool]]


def with_model() -> dict[str, str]:
    """The environment in which the configuration finds the model."""
    found = subprocess.run([sys.executable, "-m", "zoo.smollm2"], check=True, capture_output=True, text=True)
    return os.environ | {"SMOLLM2": found.stdout.strip()}


def context_questions() -> list[Asked]:
    """Documents that contradict what is known, and whether an answer is the document's."""
    asked: list[Asked] = []
    for document, question in TEMPLATES:
        for country, learned, told in CAPITALS:
            messages = [
                {"role": "user", "name": "context", "content": document.format(country, told)},
                {"role": "user", "content": question.format(country)},
            ]
            asked.append((messages, lambda text, t=told, k=learned: t in text and k not in text))  # type: ignore[misc]
    return asked


def guided_questions() -> list[Asked]:
    """Questions under a system message, and whether an answer does what it asks for."""
    return [
        ([{"role": "system", "content": form}, {"role": "user", "content": question}], follows)
        for form, follows in FORMS
        for question in QUESTIONS
    ]


def wilson(hits: int, number: int) -> tuple[float, float]:
    """The interval of 95 % around a share (Wilson 1927)."""
    z, p = 1.96, hits / number
    centre, half = p + z * z / (2 * number), z * math.sqrt(p * (1 - p) / number + z * z / (4 * number**2))
    return max(0.0, (centre - half) / (1 + z * z / number)), min(1.0, (centre + half) / (1 + z * z / number))


async def share(client: AsyncOpenAI, preset: str, alpha: float, asked: Sequence[Asked]) -> dict[str, Any]:
    """How many answers of a preset follow, at a weight."""
    room = asyncio.Semaphore(AT_ONCE)
    fusion: dict[str, Any] = {"weighting": "static", "alpha": alpha} if alpha else {"weighting": "none"}

    async def follows(messages: list[Any], test: Callable[[str], bool]) -> bool:
        async with room:
            answer = await client.chat.completions.create(
                model=preset,
                messages=messages,
                max_tokens=NEW_TOKENS,
                temperature=0,
                extra_body={"fusion": fusion},
            )
        return test(answer.choices[0].message.content or "")

    hits = sum(await asyncio.gather(*(follows(*each) for each in asked)))
    low, high = wilson(hits, len(asked))
    return {"alpha": alpha, "follow": hits, "of": len(asked), "share": round(hits / len(asked), 3),
            "low": round(low, 3), "high": round(high, 3)}  # fmt: skip


async def measure(url: str) -> list[dict[str, Any]]:
    """All weights of both recipes."""
    rows = []
    async with AsyncOpenAI(base_url=url + "/v1", api_key="none", timeout=600) as client:
        for name, preset, asked in (
            ("context", "smollm2-faithful", context_questions()),
            ("guidance", "smollm2-guided", guided_questions()),
        ):
            for alpha in ALPHAS:
                row = {"recipe": name, **await share(client, preset, alpha, asked)}
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                rows.append(row)
    return rows


def main() -> None:
    """Serve the model, ask, and store what came of it."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(CONFIG, Path(folder) / "log", environment=with_model()) as server,
    ):
        rows = asyncio.run(measure(server.url))
    print(f"stored in {store('recipes', rows)}")


if __name__ == "__main__":
    main()
