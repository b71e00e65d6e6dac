"""Asks a server: token ids of prompts, greedy answers, log-likelihoods of given answers.

Prompts travel as token ids, so that a chat's prompt and its answer can be scored as one text, and every setting reads
exactly the same tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from openai import AsyncOpenAI
from openai.types import Completion

from evaluation.decoding import GREEDY
from evaluation.examples import Example
from evaluation.suite import Task
from server.client import plain_errors

TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Encoded:
    """An example as token ids: the prompt, and the prompt with each candidate answer; `start` is where they part."""

    prompt: list[int]
    whole: list[list[int]]
    start: int


@dataclass(frozen=True)
class Reply:
    """What a server said, and when: `started` in seconds since the epoch, `seconds` until the answer was complete."""

    started: float
    seconds: float
    tokens: int
    text: str = ""
    log_likelihoods: list[float] = field(default_factory=list)
    trace: dict[str, Any] | None = None


class Client:
    """One server, asked through the OpenAI SDK."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._sdk = AsyncOpenAI(
            base_url=self.url + "/v1", api_key=key or "none", max_retries=5, timeout=TIMEOUT_SECONDS
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._sdk.close()

    async def members(self) -> dict[str, Any]:
        """Return what the server says of its members."""
        url = self.url + "/v1/fusion/experts"
        answer: dict[str, Any] = await self._ask("its members", self._sdk.get(url, cast_to=object))
        return answer

    async def presets(self) -> list[str]:
        """Return the names under `/v1/models`, the default first."""
        answer = await self._ask("its models", self._sdk.models.list())
        return [model.id for model in answer.data]

    async def encode(self, what: str, task: Task, example: Example, shots: Sequence[Example]) -> Encoded:
        """Tokenise an example behind its shots; `what` names it in errors."""
        candidates = example.choices or (example.answer,)
        if task.chat:
            turns = [turn for shot in shots for turn in (*shot.before, *_user(shot.prompt), *_assistant(shot.answer))]
            turns += [*example.before, *_user(example.prompt)]
            prompt = await self._tokens(what, {"messages": turns, "add_generation_prompt": True})
            bodies = [{"messages": turns + _assistant(c), "add_generation_prompt": False} for c in candidates]
        else:
            text = "\n\n".join([*(_joined(shot.prompt, shot.answer) for shot in shots), example.prompt])
            prompt = await self._tokens(what, {"prompt": text})
            bodies = [{"prompt": _joined(text, candidate)} for candidate in candidates]
        if task.metric == "exact":
            return Encoded(prompt, [], len(prompt))
        whole = [await self._tokens(what, body) for body in bodies]
        # The last token of a prompt may merge with the answer's first; what all have in common is not scored.
        return Encoded(prompt, whole, min(_common(prompt, ids) for ids in whole))

    async def generate(
        self, what: str, model: str, fusion: dict[str, Any] | None, task: Task, encoded: Encoded, traced: bool
    ) -> Reply:
        """Return the greedy answer, with the fusion's trace and the tokens' texts in it if `traced`."""
        body = {"fusion": {**(fusion or {}), "trace": True}} if traced else {"fusion": fusion} if fusion else {}
        started = time.time()
        answer: Completion = await self._ask(
            what,
            self._sdk.completions.create(
                model=model,
                prompt=encoded.prompt,
                max_tokens=task.max_tokens,
                stop=list(task.stop) or None,
                logprobs=0 if traced else None,
                extra_body=GREEDY | body,
            ),
        )
        seconds = time.time() - started
        (choice,) = answer.choices
        trace = None
        if traced:
            pieces = choice.logprobs.tokens if choice.logprobs else None
            trace = {"tokens": pieces, "alpha": (choice.model_extra or {}).get("fusion", {}).get("alpha")}
        tokens = answer.usage.completion_tokens if answer.usage else 0
        return Reply(started, seconds, tokens, text=choice.text, trace=trace)

    async def score(self, what: str, model: str, fusion: dict[str, Any] | None, encoded: Encoded) -> Reply:
        """Return the log-likelihood of each candidate answer, in nats."""
        started = time.time()
        answer: Completion = await self._ask(
            what,
            self._sdk.completions.create(
                model=model,
                prompt=encoded.whole,
                max_tokens=0,
                echo=True,
                logprobs=0,
                extra_body=GREEDY | ({"fusion": fusion} if fusion else {}),
            ),
        )
        seconds = time.time() - started
        totals = []
        for choice in sorted(answer.choices, key=lambda choice: choice.index):
            values = (choice.logprobs.token_logprobs if choice.logprobs else None) or []
            totals.append(sum(value for value in values[encoded.start :] if value is not None))
        return Reply(started, seconds, sum(map(len, encoded.whole)), log_likelihoods=totals)

    async def route(self, what: str, preset: str, encoded: Encoded) -> dict[str, Any]:
        """Return what a preset's router chooses for a prompt, as a request's `fusion` field would name it."""
        request = self._sdk.completions.create(model=preset, prompt=encoded.prompt, max_tokens=1, extra_body=GREEDY)
        answer: Completion = await self._ask(what, request)
        (choice,) = answer.choices
        route: dict[str, Any] = (choice.model_extra or {})["fusion_route"]
        if not route["experts"]:
            return {"weighting": "none"}
        return {key: route[key] for key in ("experts", "parts") if key in route}

    async def _tokens(self, what: str, body: dict[str, Any]) -> list[int]:
        answer: Any = await self._ask(what, self._sdk.post(self.url + "/tokenize", cast_to=object, body=body))
        tokens: list[int] = answer["tokens"]
        return tokens

    async def _ask(self, what: str, request: Any) -> Any:
        """Await a request; a fault names what was asked and what the server said."""
        with plain_errors(self.url, what):
            return await request


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _joined(prompt: str, answer: str) -> str:
    """An answer behind its prompt: after one space, or directly where the prompt ends in white space."""
    return prompt + answer if prompt[-1:].isspace() or answer[:1].isspace() else f"{prompt} {answer}"


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids two sequences share at their beginning."""
    pairs = zip(left, right, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
