"""What the recipes of docs/prompts.md do: how many answers are what was asked for, by the weight.

    python -m bench.recipes [--only real|demo]

Of a real model, SmolLM2-135M-Instruct (zoo/smollm2.yaml):

- guidance: the system message asks for what a test can see, a subject or short answers (classifier-free guidance).
  `bench.steering` has context-aware decoding, and more of guidance.

Of the demo family (zoo/recipes.yaml), the held-out questions of its `text` task, answers exact to the last character:

- contrast, dexperts, reward: the large model against the base, the `text` expert against the `facts` expert, and its
  log-probabilities alone; `proxy` is the `text` expert against the base.
- plain format, chat format: the large model reads plain text, as a base model would, and the expert and the base read
  the same, or their own chat format.

All greedy, with Wilson's intervals of 95 %; `alpha: 0` is the large model alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from bench.results_file import store
from bench.shares import wilson
from bench.steering import CONFIG, with_model
from server.launcher import ServerProcess
from zoo import FAMILY

DEMO = FAMILY / "recipes.yaml"
ALPHAS = {"real": (0.0, 0.5, 1.0, 1.5, 2.0), "demo": (0.0, 0.25, 0.5, 1.0, 1.5)}
AT_ONCE = 8
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


def guided_questions() -> list[Asked]:
    """Questions under a system message, and whether an answer does what it asks for."""
    return [
        Asked([{"role": "system", "content": form}, {"role": "user", "content": question}], follows)
        for form, follows in FORMS
        for question in QUESTIONS
    ]


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


async def measure(url: str, model: str, recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
    """All weights of a model's recipes."""
    rows = []
    async with AsyncOpenAI(base_url=url + "/v1", api_key="none", timeout=600) as client:
        for recipe in recipes:
            for alpha in ALPHAS[model]:
                row = {"model": model, "recipe": recipe.name, **await share(client, recipe, alpha)}
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                rows.append(row)
    return rows


def main() -> None:
    """Serve each model, ask, and store what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(ALPHAS), help="that model's recipes; stored is what was measured")
    only = parser.parse_args().only
    rows = []
    for model in [only] if only else ALPHAS:
        if model == "demo":
            config, environment, recipes = DEMO, dict(os.environ), demo_questions()
        else:
            guidance = Recipe("guidance", "smollm2-guided", guided_questions())
            config, environment, recipes = CONFIG, with_model(), [guidance]
        with (
            tempfile.TemporaryDirectory() as folder,
            ServerProcess(config, Path(folder) / "log", environment=environment) as server,
        ):
            rows += asyncio.run(measure(server.url, model, recipes))
    print(f"stored in {store('recipes', rows)}")


if __name__ == "__main__":
    main()
