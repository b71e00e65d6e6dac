"""Fits a router to examples of what each expert is for, and tells how often it is right.

A prompt is what the base makes of it: its last hidden state where the answer begins, which the engine has anyway when
a request's prompt has been read. On that, scikit-learn fits a softmax regression with an L2 penalty; the states'
means and scales are folded into its weights.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.engine.routing.router import NONE, Router, fingerprint
from server.errors import ConfigError, nearest

LEAST = 8
"""Examples of each class."""
PENALTY = 10.0
"""Of the weights' squares: scikit-learn's 1 / C."""
SURE, UNSURE = 0.7, 0.9
"""The threshold where examples of no expert are among those that it learns from, and where there are none."""

Tick = Callable[[float], None]
"""Hears how many are done."""


class Example(BaseModel):
    """One line of the examples."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | None = Field(None, min_length=1)
    messages: list[dict[str, Any]] | None = Field(None, min_length=1)
    expert: str

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of prompt and messages is needed")
        return self

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """Its messages; a prompt is the user's."""
        return self.messages or [{"role": "user", "content": self.prompt}]


@dataclass(frozen=True)
class Share:
    """How often a router was right about examples of one class."""

    name: str
    number: int
    right: int
    low: float
    """Wilson's interval of 95 %."""
    high: float
    taken_for: dict[str, int]
    """The others, by what they were taken for."""


def read_examples(file: Path, experts: Sequence[str]) -> list[Example]:
    """The examples in a file of JSON lines, `{"prompt" or "messages": ..., "expert": NAME or "none"}`.

    Raises:
        ConfigError: a line is not one, or names no expert of the configuration.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            example = Example.model_validate(json.loads(line))
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"]))
            raise ConfigError(f"{where}: {place + ': ' if place else ''}{fault['msg']}") from None
        except ValueError as error:
            raise ConfigError(f"{where}: not JSON: {error}") from None
        if example.expert not in (*experts, NONE):
            hint = nearest(example.expert, [*experts, NONE])
            raise ConfigError(f"{where}: there is no expert '{example.expert}'; {hint}")
        found.append(example)
    if not found:
        raise ConfigError(f"{file}: there is no example in it")
    return found


def states(base: Path, tokenizer: Any, examples: Sequence[Example], tick: Tick) -> np.ndarray:
    """[n, width] the base's last hidden states at the ends of the examples' prompts, written by a chat template.

    Raises:
        ConfigError: the template refuses an example's messages, or the base's state is no number.
    """
    from jinja2 import TemplateError
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto", local_files_only=True)
    model = model.eval().to(device)
    found = []
    with torch.inference_mode():
        for number, example in enumerate(examples, start=1):
            try:
                ids = tokenizer.apply_chat_template(example.conversation, add_generation_prompt=True, return_dict=True)
            except (TemplateError, TypeError, ValueError, KeyError) as error:
                raise ConfigError(f"the chat template refuses {example.conversation!r:.200}: {error}") from None
            read = torch.tensor([ids["input_ids"]], device=device)
            hidden = model(read, output_hidden_states=True, use_cache=False).hidden_states[-1]
            found.append(hidden[0, -1].float().cpu().numpy())
            if not np.isfinite(found[-1]).all():
                raise ConfigError(f"{base}: what it makes of {example.conversation!r:.200} is not a number")
            tick(number)
    return np.stack(found)


def fit(base: Path, vectors: np.ndarray, names: Sequence[str], threshold: float | None) -> Router:
    """A router for a base, fitted to its states [n, width] and whose each is.

    Raises:
        ConfigError: there is one class alone, or one has too few examples.
    """
    from sklearn.linear_model import LogisticRegression

    counts = Counter(names)
    if len(counts) < 2:
        only = next(iter(counts))
        raise ConfigError(
            f"all examples are {'of no expert' if only == NONE else f'for {only}'}: a router needs two kinds at least, "
            f"such as another expert's, or '{NONE}'"
        )
    few = min(counts, key=lambda name: counts[name])
    if counts[few] < LEAST:
        raise ConfigError(f"'{few}' has {counts[few]} examples to learn from; {LEAST} at least are needed")
    mean, scale = vectors.mean(axis=0), vectors.std(axis=0) + 1e-6
    found = LogisticRegression(C=1 / PENALTY, max_iter=2000).fit((vectors - mean) / scale, list(names))
    weight, bias = found.coef_, found.intercept_
    if len(found.classes_) == 2:
        # Of two, scikit-learn has the second's logit alone.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scale
    if threshold is None:
        threshold = SURE if NONE in counts else UNSURE
    return Router(
        torch.from_numpy(weight).float(),
        torch.from_numpy(bias - weight @ mean).float(),
        tuple(map(str, found.classes_)),
        threshold,
        fingerprint(base),
    )


def judge(router: Router, vectors: np.ndarray, names: Sequence[str]) -> list[Share]:
    """How often the router sends states [n, width] where they belong, by class, and last over all."""
    probabilities = router.probabilities(torch.from_numpy(vectors)).numpy()
    among = [name for name in router.classes if name != NONE]
    said = [next(iter(router.choose(row, among, 1)), NONE) for row in probabilities]
    pairs = list(zip(names, said, strict=True))
    shares = [_share(name, [pair for pair in pairs if pair[0] == name]) for name in sorted(set(names))]
    return [*shares, _share("all", pairs)]


def _share(name: str, pairs: Sequence[tuple[str, str]]) -> Share:
    from scipy.stats import binomtest

    right = sum(wanted == said for wanted, said in pairs)
    interval = binomtest(right, len(pairs)).proportion_ci(method="wilson")
    wrong = Counter(said for wanted, said in pairs if wanted != said)
    return Share(name, len(pairs), right, interval.low, interval.high, dict(wrong.most_common()))
