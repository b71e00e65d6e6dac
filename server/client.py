"""A running server as this project's own commands see it, through OpenAI's SDK; its faults are sentences for people."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
from openai import APIConnectionError, APIError, APIStatusError, AuthenticationError, OpenAI, RateLimitError

from server.errors import ServerError
from server.options import KEY_VARIABLE


class Server:
    """A server's address and an SDK client of it.

    Its methods raise `ServerError` with a sentence for people where the server is not there or refuses.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.sdk = OpenAI(base_url=f"{self.url}/v1", api_key=key or "none", max_retries=0)

    def presets(self) -> list[str]:
        """The names in `/v1/models`, the default first."""
        with plain_errors(self.url):
            return [model.id for model in self.sdk.models.list()]

    def members(self) -> dict[str, Any]:
        """What `/v1/fusion/experts` says."""
        with plain_errors(self.url):
            answer: dict[str, Any] = self.sdk.get("/fusion/experts", cast_to=dict[str, Any])
            return answer


@contextlib.contextmanager
def plain_errors(url: str, what: str | None = None) -> Iterator[None]:
    """Turn the SDK's exceptions into sentences that say what to do; `what` was asked.

    Raises:
        ServerError: the server at `url` is not there, or refused.
    """
    try:
        yield
    except (APIError, httpx.TransportError) as error:
        raise ServerError(f"{what}: {_sentence(url, error)}" if what else _sentence(url, error)) from error


def _sentence(url: str, error: APIError | httpx.TransportError) -> str:
    match error:
        case AuthenticationError():
            return f"{url} asks for an API key that it knows: give --key, or set {KEY_VARIABLE}"
        case RateLimitError():
            seconds = error.response.headers.get("Retry-After")
            return _said(error) + (f"; try again in {seconds} s" if seconds else "")
        case APIStatusError():
            return _said(error)
        case APIConnectionError() | httpx.TransportError():
            return f"no server answers at {url}; start one with `logit-fusion serve`, or give its --url"
    return error.message  # in the middle of a stream


def _said(error: APIStatusError) -> str:
    """The server's own sentence, without what the SDK puts before it."""
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or f"the server answered with HTTP status {error.status_code}")
