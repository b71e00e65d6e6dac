"""Texts on their way to token ids: bounded, and long ones where they are in nobody's way.

vLLM renders and tokenizes all requests in one thread, first come, first served. Here that thread is for short requests.
A long one waits for its turn, by the same fairness between keys as in front of the engine, and is then read in a thread
of its own.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from vllm.inputs import TextPrompt
from vllm.renderers import TokenizeParams
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.tokenizers import TokenizerLike

from server.admission import AdmissionError, Gate, Policy, Ticket
from server.auth import ANYBODY, Client
from server.config.traffic import AdmissionConfig

# Past the tokens that are kept: where a text is cut, the next tokens may be others.
MARGIN_TOKENS = 64
# About 50 ms of a tokenizer's time.
LONG_BYTES = 64 * 1024


class Sender(NamedTuple):
    """Whose request is read, and how large its body is."""

    client: Client
    body_bytes: int


sender: ContextVar[Sender] = ContextVar("sender")
"""The sender of the request that runs in this task. Where nobody told, its texts are taken for long ones."""

_UNKNOWN = Sender(ANYBODY, LONG_BYTES + 1)


class Renderer(OnlineRenderer):
    """vLLM's renderer for short requests; the long ones go to `long`, one at a time."""

    def __init__(self, long: OnlineRenderer, gate: Gate, config: AdmissionConfig, **settings: Any) -> None:
        super().__init__(**settings)
        self._long = long
        self._refusals = gate
        policy = Policy(
            max_running=1,
            max_running_tokens=math.inf,
            max_queued=config.max_queued,
            queue_timeout_s=config.queue_timeout_s,
            aging_s=config.aging_s,
        )
        # Refusals count as those of the engine's gate; the rest would tell an operator nothing.
        self._gate = Gate(policy, CollectorRegistry())

    async def preprocess_chat(self, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's."""
        return await self._read(super().preprocess_chat, self._long.preprocess_chat, *args, **kwargs)

    async def preprocess_cmpl(self, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's."""
        return await self._read(super().preprocess_cmpl, self._long.preprocess_cmpl, *args, **kwargs)

    async def _read(
        self, short: Callable[..., Awaitable[Any]], long: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any
    ) -> Any:
        client, size = sender.get(_UNKNOWN)
        if size <= LONG_BYTES:
            return await short(*args, **kwargs)
        ticket = Ticket(client=client.name, weight=client.weight, priority=client.priority, tokens=size)
        try:
            await self._gate.enter(ticket)
        except AdmissionError as error:
            raise self._refusals.count(error) from None
        # A thread cannot be stopped: the next one waits for its end, whether the request is still there or not.
        reading = asyncio.ensure_future(long(*args, **kwargs))
        reading.add_done_callback(lambda _: self._gate.leave(ticket))
        reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(reading)


@dataclass(frozen=True)
class CutParams(TokenizeParams):
    """Cuts the text that `truncate_prompt_tokens` will cut anyway before the tokenizer sees all of it.

    vLLM 0.32 does so only where `truncation_side` is given too, and at the length of the context.
    """

    def apply_pre_tokenization(self, tokenizer: TokenizerLike | None, prompt: TextPrompt) -> TextPrompt:
        """As vLLM's, on no more characters than what is kept can have."""
        if tokenizer is not None and self.max_input_tokens is not None:
            kept = self.max_input_tokens
            if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens >= 0:
                kept = min(kept, self.truncate_prompt_tokens + MARGIN_TOKENS)
            most, text = kept * tokenizer.max_chars_per_token, prompt["prompt"]
            side = self.truncation_side or tokenizer.truncation_side
            prompt["prompt"] = text[-most:] if side == "left" else text[:most]
        return super().apply_pre_tokenization(tokenizer, prompt)


def cut(params: TokenizeParams) -> TokenizeParams:
    """The same parameters, with the text bounded also where it is to be truncated."""
    if params.truncate_prompt_tokens is None:
        return params
    return CutParams(**{field.name: getattr(params, field.name) for field in fields(params)})
