"""What `logit-fusion chat` asks, and the answers token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from server.client import Server, plain_errors


@dataclass
class Settings:
    """What the next request asks for; None leaves it to the preset."""

    preset: str
    weighting: str | None = None
    alpha: float | None = None
    experts: list[str] | None = None
    max_tokens: int = 256
    temperature: float = 0.0

    def fusion(self) -> dict[str, Any]:
        """The request's `fusion` field."""
        asked = {"weighting": self.weighting, "alpha": self.alpha, "experts": self.experts}
        return {name: value for name, value in asked.items() if value is not None} | {"trace": True}


@dataclass(frozen=True)
class Token:
    """One generated token: what it adds to the text, and the experts' weights."""

    text: str
    alpha: dict[str, float]

    @property
    def movers(self) -> list[str]:
        """The experts with the largest weight; none if the large model was left alone."""
        largest = max((abs(value) for value in self.alpha.values()), default=0.0)
        return [name for name, value in self.alpha.items() if largest > 0.0 and abs(value) >= largest - 1e-6]


def answer(server: Server, messages: Sequence[dict[str, str]], settings: Settings) -> Iterator[Token]:
    """Ask, and yield the answer's tokens as they come.

    Raises:
        ServerError: the server is gone, or refused.
    """
    with plain_errors(server.url):
        stream = server.sdk.chat.completions.create(
            model=settings.preset,
            messages=list(messages),  # type: ignore[arg-type]
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            logprobs=True,
            stream=True,
            extra_body={"fusion": settings.fusion()},
        )
        yield from _tokens(stream)


def _tokens(stream: Any) -> Iterator[Token]:
    """Join text and trace, which need not travel in the same chunk: the first token's trace comes with the role."""
    texts: list[str] = []
    alphas: list[dict[str, float]] = []
    for chunk in stream:
        if not chunk.choices:
            continue
        choice = chunk.choices[0]
        names = [entry.token for entry in (choice.logprobs.content or [])] if choice.logprobs else []
        texts += _shared_out(choice.delta.content or "", names)
        fusion = (choice.model_extra or {}).get("fusion")
        if fusion:
            count = len(fusion["token_ids"])
            alphas += [{name: row[i] or 0.0 for name, row in fusion["alpha"].items()} for i in range(count)]
        ready = min(len(texts), len(alphas))
        yield from (Token(text, alpha) for text, alpha in zip(texts[:ready], alphas[:ready], strict=True))
        del texts[:ready], alphas[:ready]


def _shared_out(text: str, names: Sequence[str]) -> list[str]:
    """Give each token of a chunk its part of the chunk's text; what is not told apart goes to the last one."""
    parts = []
    for name in names[:-1]:
        start = text.find(name)
        found = name != "" and start >= 0 and not text[:start].strip()
        end = start + len(name) if found else 0
        parts.append(text[:end])
        text = text[end:]
    return [*parts, text] if names else []
