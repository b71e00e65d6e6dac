"""The demo family's router."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from training.routing import Example, fit, states
from zoo.routing import Prompt, learned

ROUTER = "router.safetensors"


def fit_router(data: Path, family: Path) -> None:
    """Fit the router of a family, whose models are trained, and put it beside them."""
    base = family / "models" / "base"
    prompts = learned(data)
    tokenizer = AutoTokenizer.from_pretrained(family / "models" / "large")
    vectors = states(base, tokenizer, examples(prompts), lambda _: None)
    fit(base, vectors, [expert for _, expert in prompts], None).save(family / "models" / ROUTER)


def examples(prompts: Sequence[Prompt]) -> list[Example]:
    """Prompts as a router learns them."""
    return [Example(prompt=prompt, expert=expert) for prompt, expert in prompts]
