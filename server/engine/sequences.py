"""A request's sequences, each in a seat of its own.

vLLM starts all choices of a prompt at once. Here each becomes a request of its own as soon as there is a seat for it,
so that a request for many is as easy to run beside others as many requests. What comes out is as vLLM's: the names and
seeds of the sequences, and the outputs, whole or as they come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from copy import copy
from functools import partial
from typing import NamedTuple

from vllm import RequestOutput, SamplingParams
from vllm.sampling_params import RequestOutputKind

from server.engine.place import Place, Seat, Text

Start = Callable[[SamplingParams, str], AsyncGenerator[RequestOutput, None]]
"""Starts one sequence, by its sampling parameters and its name."""


class Tokens(NamedTuple):
    """Of one sequence."""

    prompt: int
    """The request's own prompt."""
    read: int
    """All prompts that its members read."""
    most: int
    """And what it may generate."""


async def seated(
    here: Place, tokens: Tokens, start: Start, params: SamplingParams, name: str
) -> AsyncGenerator[RequestOutput, None]:
    """The outputs of a request for the `params.n` choices of one prompt, each of `tokens`."""
    if params.n == 1:
        async with aclosing(_in_seat(await here.seat(tokens.most), tokens, start(params, name))) as outputs:
            async for output in outputs:
                yield output
        return
    whole = params.output_kind is RequestOutputKind.FINAL_ONLY
    choices = {}
    left = params.n
    async with aclosing(_each(here, tokens, start, params, name)) as numbered:
        async for index, output in numbered:
            left -= output.finished
            output.request_id, output.finished = name, not left
            for choice in output.outputs:
                choice.index = index
            if whole:
                choices[index] = output.outputs[0]
                if left:
                    continue
                output.outputs = [choices[index] for index in range(params.n)]
            yield output


def _leave(seat: Seat, task: asyncio.Task[None]) -> None:
    seat.leave()


async def _in_seat(
    seat: Seat, tokens: Tokens, outputs: AsyncGenerator[RequestOutput, None]
) -> AsyncGenerator[RequestOutput, None]:
    text = Text([], [])
    try:
        async with aclosing(outputs):
            async for output in outputs:
                # vLLM 0.32 tells what the prompt was with the first output alone.
                text = text._replace(prompt=output.prompt_token_ids or text.prompt)
                for choice in output.outputs:
                    text.answer.extend(choice.token_ids)
                    seat.finish_reason = choice.finish_reason
                seat.read, seat.prompt, seat.generated = tokens.read, tokens.prompt, len(text.answer)
                if output.finished and output.outputs and seat.finish_reason != "abort":
                    seat.text = text
                yield output
    finally:
        seat.leave()


async def _each(
    here: Place, tokens: Tokens, start: Start, params: SamplingParams, name: str
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """The outputs of all choices as they come, each with its choice's index."""
    # A full queue makes vLLM put the outputs together that a slow reader has not taken yet.
    queue: asyncio.Queue[tuple[int, RequestOutput] | None] = asyncio.Queue(maxsize=params.n)

    async def run(index: int, seat: Seat) -> None:
        mine = copy(params)
        mine.n = 1
        if params.seed is not None:
            mine.seed = params.seed + index
        # The first choice counts the prompt for all.
        counted = tokens._replace(prompt=0) if index else tokens
        async with aclosing(_in_seat(seat, counted, start(mine, f"{index}_{name}"))) as outputs:
            async for output in outputs:
                await queue.put((index, output))

    async def run_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(params.n):
                    seat = await here.seat(tokens.most)
                    task = group.create_task(run(index, seat))
                    # A task that is cancelled before its first step runs nothing of its own.
                    task.add_done_callback(partial(_leave, seat))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        await queue.put(None)

    running = asyncio.create_task(run_all())
    # An error must wake the reader, also where the queue is full.
    try:
        while True:
            taking = asyncio.ensure_future(queue.get())
            await asyncio.wait([taking, running], return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                taking.cancel()
                await running
                return
            item = taking.result()
            if item is None:
                return
            yield item
    finally:
        running.cancel()
        await asyncio.wait([running])
