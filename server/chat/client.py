"""The server as `logit-fusion chat` sees it: presets, members, and answers token by token."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from openai import APIConnectionError, APIError, APIStatusError, AuthenticationError, OpenAI, RateLimitError

from server.errors import ServerError


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


class Server:
    """The server that is talked to, through OpenAI's SDK.

    Its methods raise `ServerError` with a sentence for people where the server is not there or refuses.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/")
        self._client = OpenAI(base_url=f"{self.url}/v1", api_key=key or "none", max_retries=0)

    def presets(self) -> list[str]:
        """The names in `/v1/models`."""
        with _plain_errors(self.url):
            return [model.id for model in self._client.models.list()]

    def members(self) -> dict[str, Any]:
        """What `/v1/fusion/experts` says."""
        with _plain_errors(self.url):
            answer: dict[str, Any] = self._client.get("/fusion/experts", cast_to=dict[str, Any])
            return answer

    def answer(self, messages: Sequence[dict[str, str]], settings: Settings) -> Iterator[Token]:
        """Ask, and yield the answer's tokens as they come."""
        with _plain_errors(self.url):
            stream = self._client.chat.completions.create(
                model=settings.preset,
                messages=list(messages),  # type: ignore[arg-type]
                max_tokens=settings.max_tokens,
                temperature=settings.temperature,
                logprobs=True,
                stream=True,
                extra_body={"fusion": settings.fusion()},
            )
            yield from _tokens(stream)


@contextlib.contextmanager
def _plain_errors(url: str) -> Iterator[None]:
    """Turn the SDK's exceptions into `ServerError`s that say what to do."""
    try:
        yield
    except AuthenticationError as error:
        raise ServerError(
            f"{url} asks for an API key that it knows: give --key, or set LOGIT_FUSION_API_KEY"
        ) from error
    except RateLimitError as error:
        seconds = error.response.headers.get("Retry-After")
        raise ServerError(_said(error) + (f"; try again in {seconds} s" if seconds else "")) from error
    except APIStatusError as error:
        raise ServerError(_said(error)) from error
    except (APIConnectionError, httpx.TransportError) as error:
        raise ServerError(
            f"no server answers at {url}; start one with `logit-fusion serve`, or give its --url"
        ) from error
    except APIError as error:  # in the middle of a stream
        raise ServerError(error.message) from error


def _said(error: APIStatusError) -> str:
    """The server's own sentence, without what the SDK puts before it."""
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or f"the server answered with HTTP status {error.status_code}")


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
