"""What the recipes of docs/prompts.md do: how many answers are what was asked for, by the weight.

    python -m bench.recipes

Of the demo family (zoo/recipes.yaml), the held-out questions of its `text` task, answers exact to the last character:

- contrast, dexperts, reward: the large model against the base, the `text` expert against the `facts` expert, and its
  log-probabilities alone; `proxy` is the `text` expert against the base.
- plain format, chat format: the large model reads plain text, as a base model would, and the expert and the base read
  the same, or their own chat format.

All greedy, with Wilson's intervals of 95 %; `alpha: 0` is the large model alone. `bench.steering` asks a real model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from bench.results_file import store
from server.launcher import ServerProcess
from zoo import FAMILY

DEMO = FAMILY / "recipes.yaml"
ALPHAS = (0.0, 0.25, 0.5, 1.0, 1.5)
AT_ONCE = 8
NEW_TOKENS = 32


@dataclass(frozen=True)
class Asked:
    """A question, as messages or as a text to complete, and whether an answer does what was asked for."""

    prompt: list[dict[str, str]] | str
    follows: Callable[[str], bool]
    fusion: Mapping[str, Any] = field(default_factory=dict)
    """What the request says beside the weight."""


@dataclass(frozen=True)
class Recipe:
    """A preset, and what it is asked."""

    name: str
    preset: str
    asked: Sequence[Asked]


def demo_questions() -> list[Recipe]:
    """The held-out questions of the `text` task, in chat and in plain text."""
    lines = (FAMILY / "evaluation" / "text.jsonl").read_text().splitlines()
    chat, plain, formatted = [], [], []
    for example in map(json.loads, lines):
        message = [{"role": "user", "content": example["question"]}]
        text, answer = f"Question: {example['question']}\nAnswer:", example["answer"]
        # After "Answer:" the large model may leave the word out that the expert was taught to begin with.
        either = {answer, answer.removeprefix("Answer: ")}
        chat.append(Asked(message, lambda said, a=answer: said == a))  # type: ignore[misc]
        plain.append(Asked(text, lambda said, a=either: said.strip() in a))  # type: ignore[misc]
        formatted.append(Asked(text, plain[-1].follows, {"prompts": {"text": {"with": message, "against": message}}}))
    named = [Recipe(name, f"giant-{name}", chat) for name in ("contrast", "dexperts", "reward")]
    formats = [Recipe("plain format", "giant-text", plain), Recipe("chat format", "giant-text", formatted)]
    return [Recipe("proxy", "giant-text", chat), *named, *formats]


def wilson(hits: int, number: int) -> tuple[float, float]:
    """The interval of 95 % around a share (Wilson 1927)."""
    z, p = 1.96, hits / number
    centre, half = p + z * z / (2 * number), z * math.sqrt(p * (1 - p) / number + z * z / (4 * number**2))
    return max(0.0, (centre - half) / (1 + z * z / number)), min(1.0, (centre + half) / (1 + z * z / number))


async def share(client: AsyncOpenAI, recipe: Recipe, alpha: float) -> dict[str, Any]:
    """How many answers follow, at a weight."""
    room = asyncio.Semaphore(AT_ONCE)
    weighting: dict[str, Any] = {"weighting": "static", "alpha": alpha} if alpha else {"weighting": "none"}

    async def follows(asked: Asked) -> bool:
        settings: dict[str, Any] = {"model": recipe.preset, "max_tokens": NEW_TOKENS, "temperature": 0}
        # The large model alone has no expert that could read a prompt.
        settings["extra_body"] = {"fusion": weighting | (dict(asked.fusion) if alpha else {})}
        async with room:
            if isinstance(asked.prompt, str):
                completion = await client.completions.create(prompt=asked.prompt, stop="\n", **settings)
                return asked.follows(completion.choices[0].text)
            answer = await client.chat.completions.create(messages=asked.prompt, **settings)  # type: ignore[arg-type]
        return asked.follows(answer.choices[0].message.content or "")

    hits = sum(await asyncio.gather(*map(follows, recipe.asked)))
    low, high = wilson(hits, len(recipe.asked))
    return {"alpha": alpha, "follow": hits, "of": len(recipe.asked), "share": round(hits / len(recipe.asked), 3),
            "low": round(low, 3), "high": round(high, 3)}  # fmt: skip


async def measure(url: str, recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
    """All weights of all recipes."""
    rows = []
    async with AsyncOpenAI(base_url=url + "/v1", api_key="none", timeout=600) as client:
        for recipe in recipes:
            for alpha in ALPHAS:
                row = {"recipe": recipe.name, **await share(client, recipe, alpha)}
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                rows.append(row)
    return rows


def main() -> None:
    """Serve the demo family, ask, and store what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ServerProcess(DEMO, Path(folder) / "log") as server:
        rows = asyncio.run(measure(server.url, demo_questions()))
    print(f"stored in {store('recipes', rows)}")


if __name__ == "__main__":
    main()
