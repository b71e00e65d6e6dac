"""Puts a request's trace into its answer, as a field `fusion` beside each choice's tokens."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from server.api.tokens import token_text
from server.config.schema import FUSED as FUSED_NAME
from server.config.schema import LARGE as LARGE_NAME
from server.config.speculation import BASE as BASE_NAME
from server.engine.lens import Thought
from server.engine.request_trace import TokenTrace, Trace
from server.engine.settings import ANY, BASE, FUSED, LARGE, NOTHING

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
    `fused_top` too, the likeliest tokens before and after fusion, `{"id", "token", "p"}` each, and `lens`: by member,
    for each token such a list (`top`) and the probability of the chosen token (`p`).
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
    if any(token.lens is not None for token in tokens):
        lens = {
            name: [_thought((token.lens or {}).get(number), trace) for token in tokens]
            for name, number in _members(trace, experts, choice).items()
        }
        field["large_top"] = [thought["top"] for thought in lens[LARGE_NAME]]
        field["fused_top"] = [thought["top"] for thought in lens[FUSED_NAME]]
        field["lens"] = lens
    return field


def _members(trace: Trace, experts: Sequence[str], choice: int) -> dict[str, int]:
    """The rows of the lens: what it calls each member, and the member's number.

    An expert goes by its own name even where it is another member's weights, and what it is compared with by that
    member's: `base`, `large` or another expert, or `math against base` where that reads a prompt of its own.
    """
    sides = trace.sides.get(choice, {})
    names = {LARGE: LARGE_NAME, BASE: BASE_NAME} | {1 + t: name for t, name in enumerate(experts)}
    found = {LARGE_NAME: LARGE}
    for pair in sides.values():
        if pair.against not in (ANY, NOTHING):
            found[names.get(pair.against) or trace.names[pair.against]] = pair.against
    found |= {experts[expert]: pair.expert for expert, pair in sides.items()}
    return {**found, FUSED_NAME: FUSED}


def _thought(thought: Thought | None, trace: Trace) -> dict[str, Any]:
    if thought is None:
        return {"top": [], "p": None}
    top = [
        {"id": token_id, "token": token_text(trace.tokenizer, token_id), "p": _rounded(probability)}
        for token_id, probability in thought.top
    ]
    return {"top": top, "p": _rounded(thought.chosen)}


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


class OnceField(Protocol):
    """A field that an answer, or the beginning of a stream, has once."""

    @property
    def complete(self) -> bool:
        """Whether all of it has been attached."""

    def attach(self, answer: dict[str, Any]) -> None:
        """Attach what is known and has not been attached yet."""


async def attach_once(events: AsyncIterator[str], field: OnceField) -> AsyncIterator[str]:
    """Add the field to a stream, whose later events pass as they are."""

    async def begun() -> AsyncIterator[str]:
        async for event in events:
            yield event
            if field.complete:
                return

    async for event in attach_to_events(begun(), field.attach):
        yield event
    async for event in events:
        yield event


def _rounded(value: float | None) -> float | None:
    return round(value, DECIMALS) if value is not None and math.isfinite(value) else None
