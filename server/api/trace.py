"""Puts a request's trace into its answer, as a field `fusion` beside each choice's tokens."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from server.api.tokens import token_text
from server.engine.request_trace import TokenTrace, Trace
from server.engine.trace import Top

DECIMALS = 6

Attach = Callable[[dict[str, Any]], None]
"""Adds to one JSON object (a whole answer, or one event of a stream) the trace of the tokens that it carries."""


def attach_to_choices(trace: Trace, experts: Sequence[str], used: Sequence[int]) -> Attach:
    """For chat and text completions: each choice carries the trace of its own tokens."""

    def attach(answer: dict[str, Any]) -> None:
        for choice in answer.get("choices", ()):
            tokens = trace.take(choice["index"])
            if tokens:
                choice["fusion"] = trace_field(tokens, experts, used, trace, choice["index"])

    return attach


def attach_to_response(trace: Trace, experts: Sequence[str], used: Sequence[int]) -> Attach:
    """For `/v1/responses`: the answer carries all, a stream's events those of the tokens since the last event."""

    def attach(answer: dict[str, Any]) -> None:
        tokens = trace.take(0)
        if tokens:
            answer["fusion"] = trace_field(tokens, experts, used, trace)

    return attach


def trace_field(
    tokens: Sequence[TokenTrace], experts: Sequence[str], used: Sequence[int], trace: Trace, choice: int = 0
) -> dict[str, Any]:
    """The `fusion` object: lists with one entry per token, in order.

    `alpha` has a list for each expert in `used`; `kl_target` and `kl_fused` hold pairs, KL(expert || base) and
    KL(base || expert) (means over the experts), KL(fused || large) and KL(large || fused), in nats. Where members read
    prompts of their own, `prompt_tokens` says how long these are. The trace of a request that speculates has
    `drafted`: whether a member had drafted the token. A full trace has `large_top` and
    `fused_top` too, the likeliest tokens before and after fusion, `{"id", "token", "p"}` each.
    """
    field: dict[str, Any] = {
        "token_ids": [token.token_id for token in tokens],
        "alpha": {experts[i]: [_rounded(token.alpha[i] if token.alpha else None) for token in tokens] for i in used},
        "kl_target": [[_rounded(value) for value in token.kl_target] for token in tokens],
        "kl_fused": [[_rounded(value) for value in token.kl_fused] for token in tokens],
        "fallback": [token.fallback for token in tokens],
    }
    if own_prompts := trace.own_prompts.get(choice):
        field["prompt_tokens"] = {experts[expert]: read for expert, read in own_prompts.items()}
    if trace.speculates:
        field["drafted"] = [token.drafted for token in tokens]
    if any(token.large_top is not None for token in tokens):
        field["large_top"] = [_top(token.large_top, trace) for token in tokens]
        field["fused_top"] = [_top(token.fused_top, trace) for token in tokens]
    return field


def _top(top: Top | None, trace: Trace) -> list[dict[str, Any]]:
    return [
        {"id": token_id, "token": token_text(trace.tokenizer, token_id), "p": _rounded(probability)}
        for token_id, probability in top or ()
    ]


async def attach_to_events(events: AsyncIterator[str], attach: Attach) -> AsyncIterator[str]:
    """Attach to every JSON event of a stream of server-sent events, as vLLM's serving classes yield them."""
    async for event in events:
        head, separator, data = event.partition("data: ")
        if not separator or data.startswith("[DONE]"):
            yield event
            continue
        answer = json.loads(data)
        attach(answer)
        yield f"{head}data: {json.dumps(answer, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _rounded(value: float | None) -> float | None:
    return round(value, DECIMALS) if value is not None and math.isfinite(value) else None
