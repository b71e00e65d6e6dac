"""What fusion did at every token of the requests that asked to see it, kept in the worker until fetched.

`TraceLog.record` runs in the decode path, so it only starts copies to the host. `TraceLog.take`, which the API calls
between steps, sorts the rows of the steps that are finished by request.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from vllm.distributed import get_tensor_model_parallel_rank

from server.engine.lens import Lens, Thought, to_host
from server.engine.settings import FUSED, LARGE

if TYPE_CHECKING:
    from fusion_kernels import Fused
    from server.engine.sides import Sides
    from server.engine.slots import Slot, SlotTable
    from server.engine.speculation.outcome import Outcome
    from server.engine.step import Step

# A trace that nobody fetches (its client went away in the one moment that matters) must not stay for ever.
MAX_KEPT_TRACES = 4096
# A request that ended may still run in a step that was under way; its rows are dropped if its name is remembered.
MAX_REMEMBERED_ENDS = 1024
# Steps are sorted by request when somebody asks, or in halves of this many, so that they cannot pile up.
MAX_UNSORTED_STEPS = 512


class TraceRow(NamedTuple):
    """What fusion did at one generated token, as it travels from the worker."""

    slot: int
    """Serial number of the slot that made it: one for each choice of a request and each time it was preempted."""
    number: int
    """Counts the generated tokens from 0."""
    fed: int
    """The token that the model had just read: the generated token before this one, or the prompt's last."""
    alpha: list[float]  # [T]
    kl_target: list[float]  # [2]
    kl_fused: list[float]  # [2]
    fallback: bool
    lens: list[Thought] | None
    """What every member thought, and the fusion, of requests that asked."""
    drafted: bool
    """Whether a member had drafted the token before the fused model chose it."""


@dataclass(slots=True)
class _Step:
    slots: list[Slot | None]
    """By row: the request whose trace it belongs to, `None` where it belongs to none."""
    experts: list[int]
    tensors: tuple[torch.Tensor, ...]
    """Positions [N]; tokens read there [N]; values [N, len(experts) + 5]: alpha, KL targets, KL results, fell back."""
    lens: Lens | None
    """Of the rows that asked, if there are any."""
    done: torch.cuda.Event | None
    delivered: torch.Tensor | None = None  # [N] bool: the row's token reaches the client; `None`: all do
    drafted: torch.Tensor | None = None  # [N] bool; `None`: none was

    @property
    def finished(self) -> bool:
        """Whether the copies to the host are there."""
        return self.done is None or bool(self.done.query())  # type: ignore[no-untyped-call]


class TraceLog:
    """The traces of one worker, filled by the composite model."""

    def __init__(self, table: SlotTable) -> None:
        self._table = table
        self._keeps = get_tensor_model_parallel_rank() == 0
        self._steps: list[_Step] = []
        self._rows: dict[str, list[TraceRow]] = defaultdict(list)
        self._ended: dict[str, None] = {}
        self._newest: Step | None = None
        self._unchosen: _Step | None = None
        """The newest step, while its lens waits for the tokens that are sampled."""

    def record(
        self, step: Step, large: torch.Tensor, fused: Fused | None, experts: list[int], sides: Sides | None
    ) -> None:
        """Note the rows of a step: the large model's logits [N, V], their fusion over `experts`, and the logits that
        went into it; `None` where nothing was fused.
        """
        if not self._table.traced or not self._keeps:
            return
        slots = [self._traced(index, gives) for index, gives in zip(step.slots, step.generates, strict=True)]
        if not any(slots):
            return
        if fused is None:
            values = torch.zeros(large.shape[0], 5, dtype=torch.float32, device=large.device)
        else:
            values = torch.cat(
                (fused.alpha, fused.kl_target, fused.kl_fused, fused.fallback[:, None].to(fused.alpha.dtype)), dim=1
            )
        batch = step.batch
        positions, fed = batch.positions[batch.logits_indices], batch.input_ids[batch.logits_indices]
        wanted = [row for row, slot in enumerate(slots) if slot is not None and slot.settings.trace_top]
        lens = None
        if wanted:
            logits = self._logits(step.slots[wanted], large, fused, sides)
            lens = Lens(logits, wanted, step.slots, positions)
        tensors = tuple(map(to_host, (positions, fed, values)))
        self._steps.append(_Step(slots, experts, tensors, lens, _event(large.device)))
        self._newest = step
        self._unchosen = None if lens is None else self._steps[-1]
        if len(self._steps) >= MAX_UNSORTED_STEPS:
            self._sort(MAX_UNSORTED_STEPS // 2)

    def _traced(self, index: int, generates: bool) -> Slot | None:
        slot = self._table.slots[index]
        return slot if generates and slot is not None and slot.settings.traced else None

    def _logits(
        self, slots: np.ndarray, large: torch.Tensor, fused: Fused | None, sides: Sides | None
    ) -> dict[int, torch.Tensor]:
        """[N, V] by member, of all that the requests in some slots use; their heads have been read by now."""
        logits = {LARGE: large}
        if sides is not None:
            numbers = np.unique(self._table.pairs[slots]).tolist()
            logits |= {number: sides.member(number) for number in numbers if number >= 0}
        if fused is not None:
            logits[FUSED] = fused.logits
        return logits

    def choose(self, tokens: torch.Tensor) -> None:
        """The rows of the step that was recorded last are sampled: [slots, positions] each request's tokens."""
        step, self._unchosen = self._unchosen, None
        if step is not None and step.lens is not None:
            step.lens.choose(tokens)
            step.done = _event(tokens.device)

    def settle(self, outcome: Outcome) -> None:
        """Note which rows of the step that was recorded last gave the client a token, and which of them were drafts."""
        if not self._steps or self._newest is None or self._newest.batch is not outcome.batch:
            return
        step = self._steps[-1]
        step.delivered, step.drafted = to_host(outcome.rows_delivered), to_host(outcome.rows_drafted)
        step.done = _event(outcome.num_sampled.device)

    def take(self, trace: str, last: bool) -> list[TraceRow]:
        """Return the rows of `trace` that came since the last call, and forget them; keep none after the `last`.

        Rows of a step that is still under way on the device wait for the next call, and nobody waits for them.
        """
        self._sort(next((i for i, step in enumerate(self._steps) if not step.finished), len(self._steps)))
        if last:
            self._ended[trace] = None
            if len(self._ended) > MAX_REMEMBERED_ENDS:
                self._ended.pop(next(iter(self._ended)))
        return self._rows.pop(trace, [])

    @property
    def kept(self) -> tuple[int, int]:
        """Traces and steps that are kept at the moment."""
        return len(self._rows), len(self._steps)

    def _sort(self, number: int) -> None:
        steps, self._steps = self._steps[:number], self._steps[number:]
        for step in steps:
            if step.done is not None:
                step.done.synchronize()
            positions, fed, values_of = step.tensors
            asked = count()
            for row, slot in enumerate(step.slots):
                place = next(asked) if slot is not None and slot.settings.trace_top else None
                if slot is None or slot.settings.trace is None or slot.settings.trace in self._ended:
                    continue
                if step.delivered is not None and not step.delivered[row]:
                    continue
                # The row at the prompt's last position gives the first generated token.
                index = int(positions[row]) - (slot.num_prompt_tokens - 1)
                values = values_of[row].tolist()
                alpha = [0.0] * self._table.num_experts
                for expert, value in zip(step.experts, values, strict=False):
                    alpha[expert] = value
                targets, results, fallback = values[-5:-3], values[-3:-1], bool(values[-1])
                lens = None
                if place is not None and step.lens is not None:
                    lens = step.lens.thoughts(place, {side for pair in slot.settings.sides for side in pair})
                drafted = step.drafted is not None and bool(step.drafted[row])
                self._rows[slot.settings.trace].append(
                    TraceRow(
                        slot.serial,
                        index,
                        int(fed[row]),
                        alpha,
                        targets,
                        results,
                        fallback,
                        lens,
                        drafted,
                    )
                )
        while len(self._rows) > MAX_KEPT_TRACES:
            self._rows.pop(next(iter(self._rows)))


def _event(device: torch.device) -> torch.cuda.Event | None:
    """What tells whether everything that the device was asked so far is done; `None` on CPUs, where it is."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event
