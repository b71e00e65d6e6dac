"""The trace of one HTTP request: the worker's rows, as the tokens of its prompts and choices."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from vllm import RequestOutput
from vllm.logger import init_logger
from vllm.tokenizers import TokenizerLike

from server.engine.lens import Thought
from server.engine.settings import Pair
from server.engine.trace import TraceRow

logger = init_logger("vllm." + __name__)


@dataclass(slots=True)
class TokenTrace:
    """What fusion did at one generated token."""

    token_id: int
    alpha: list[float | None]  # by the configuration's experts
    kl_target: list[float | None]  # mean a, mean b
    kl_fused: list[float | None]  # f, g
    fallback: bool
    lens: dict[int, Thought] | None = None
    """What every member thought, by number, and the fusion, of requests that asked."""
    drafted: bool = False
    """Whether a member had drafted it."""


@dataclass(eq=False)
class Trace:
    """The trace of one HTTP request: its prompts times its choices, as they are generated.

    The engine follows it for as long as somebody holds it.
    """

    tokenizer: TokenizerLike
    """Turns the ids of a trace into texts."""
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    pending: dict[int, list[TokenTrace]] = field(default_factory=lambda: defaultdict(list))
    """Tokens not yet taken, by choice index (prompt index x n + choice, as the API counts them)."""

    speculates: bool = False
    """Whether a member drafts for the request, and the trace tells of drafts."""

    own_prompts: dict[int, dict[int, dict[str, int]]] = field(default_factory=dict)
    """By choice and expert, how many tokens the members on its sides read in the place of the request's prompt."""

    sides: dict[int, dict[int, Pair]] = field(default_factory=dict)
    """By choice and expert, the members on its sides."""

    names: Mapping[int, str] = field(default_factory=dict)
    """What members are called, by their numbers."""

    def prompt_key(self, prompt_index: int) -> str:
        """The name under which the worker keeps the trace of one of the request's prompts."""
        return f"{self.key}/{prompt_index}"

    def take(self, choice: int) -> list[TokenTrace]:
        """Return the choice's tokens since the last call."""
        return self.pending.pop(choice, [])


async def unfused(
    outputs: AsyncGenerator[RequestOutput, None], trace: Trace, first_choice: int
) -> AsyncGenerator[RequestOutput, None]:
    """The trace of a request without experts is known beforehand: every token is the large model's."""
    async with aclosing(outputs):
        async for output in outputs:
            for choice in output.outputs:
                trace.pending[first_choice + choice.index] += [
                    TokenTrace(token_id, [], [0.0, 0.0], [0.0, 0.0], False) for token_id in choice.token_ids
                ]
            yield output


class PromptRows:
    """The worker's rows of one prompt, matched to its choices.

    vLLM runs the n choices of a prompt as requests of their own, whose names the worker's public interfaces do not
    tell. They need not: a row is a function of the tokens before it, and each row says which token was fed last, so
    the rows whose fed tokens are a choice's own tokens are that choice's. Two choices with the same tokens so far
    have the same rows.
    """

    def __init__(self) -> None:
        self._slots: dict[int, dict[int, TraceRow]] = defaultdict(dict)
        self._tokens: dict[int, list[int]] = defaultdict(list)
        self._strangers: dict[int, set[int]] = defaultdict(set)
        """By choice, the slots that have read another token than the choice's own."""

    def add(self, rows: list[TraceRow]) -> None:
        """Take what the worker noted since the last call."""
        for row in rows:
            # A preempted request comes back and computes its last positions again: the first time counts.
            self._slots[row.slot].setdefault(row.number, row)

    def match(self, choice: int, new_tokens: list[int]) -> list[TokenTrace]:
        """The traces of `new_tokens`, which follow those of the choice's earlier calls."""
        tokens, strangers = self._tokens[choice], self._strangers[choice]
        start = len(tokens)
        tokens += new_tokens
        for serial, slot in self._slots.items():
            # Rows that follow the newest tokens; those of earlier tokens were compared when these came.
            compared = (slot.get(index) for index in range(max(start, 1), len(tokens) + 1))
            if any(row is not None and row.fed != tokens[row.number - 1] for row in compared):
                strangers.add(serial)
        mine = [slot for serial, slot in self._slots.items() if serial not in strangers]
        return [_token_trace(tokens[index], mine, index) for index in range(start, len(tokens))]


def _token_trace(token_id: int, slots: list[dict[int, TraceRow]], index: int) -> TokenTrace:
    row = next((slot[index] for slot in slots if index in slot), None)
    if row is None:
        logger.warning("No trace for generated token %d; its entry is empty.", index)
        return TokenTrace(token_id, [], [None, None], [None, None], False)
    return TokenTrace(
        token_id,
        list(row.alpha),
        list(row.kl_target),
        list(row.kl_fused),
        row.fallback,
        None if row.lens is None else {thought.member: thought for thought in row.lens},
        row.drafted,
    )
