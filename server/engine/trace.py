"""What fusion did at every token of the requests that asked to see it, kept in the worker until fetched.

`TraceLog.record` runs in the decode path, so it only starts copies to the host. `TraceLog.take`, which the API calls
between steps through `TraceWorkerExtension`, waits for them and sorts the rows by request.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fusion_kernels import Fused
    from server.engine.batch import BatchState, Slot

# A trace that nobody fetches (its client went away in the one moment that matters) must not stay for ever.
MAX_KEPT_TRACES = 4096
# A request that ended may still run in a step that was under way; its rows are dropped if its name is remembered.
MAX_REMEMBERED_ENDS = 1024
# Steps are sorted by request when somebody asks, or in halves of this many, so that they cannot pile up.
MAX_UNSORTED_STEPS = 512

TraceRow = tuple[int, int, int, list[float], list[float], list[float], bool]
"""(slot, index, fed token, alpha [T], KL targets [2], KL results [2], fell back), all of one generated token.

`slot` is the serial number of the slot that made it, one for each choice of a request and for each time that it was
preempted; `index` counts the generated
tokens from 0; `fed token` is the one that the model had just read, that is, the generated token before this one (or
the prompt's last).
"""


@dataclass(frozen=True, slots=True)
class _Step:
    slots: list[Slot | None]
    experts: list[int]
    owners: torch.Tensor
    positions: torch.Tensor
    fed: torch.Tensor
    values: torch.Tensor  # [N, len(experts) + 5]: alpha, KL targets, KL results, fell back
    done: torch.cuda.Event | None


class TraceLog:
    """The traces of one worker, filled by the composite model."""

    def __init__(self, batch: BatchState) -> None:
        self._batch = batch
        self._steps: list[_Step] = []
        self._rows: dict[str, list[TraceRow]] = defaultdict(list)
        self._ended: dict[str, None] = {}

    def record(self, owners: torch.Tensor, places: torch.Tensor, fused: Fused, experts: list[int]) -> None:
        """Note one `compute_logits` call: rows' owners and places [N], and their fusion over `experts`."""
        batch = self._batch
        values = torch.cat(
            (fused.alpha, fused.kl_target, fused.kl_fused, fused.fallback[:, None].to(fused.alpha.dtype)), dim=1
        )
        tensors = (owners, batch.positions[places], batch.input_ids[places], values)
        done = None
        if owners.is_cuda:
            tensors = tuple(t.to("cpu", non_blocking=True) for t in tensors)  # type: ignore[assignment]
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        self._steps.append(_Step(list(batch.slots), experts, *tensors, done))
        if len(self._steps) >= MAX_UNSORTED_STEPS:
            self._sort(MAX_UNSORTED_STEPS // 2)

    def take(self, trace: str, last: bool) -> list[TraceRow]:
        """Return the rows of `trace` that came since the last call, and forget them; keep none after the `last`."""
        self._sort(len(self._steps))
        if last:
            self._ended[trace] = None
            if len(self._ended) > MAX_REMEMBERED_ENDS:
                self._ended.pop(next(iter(self._ended)))
        return self._rows.pop(trace, [])

    @property
    def kept(self) -> tuple[int, int]:
        """Traces and steps that are kept at the moment."""
        return len(self._rows), len(self._steps)

    def _sort(self, count: int) -> None:
        steps, self._steps = self._steps[:count], self._steps[count:]
        for step in steps:
            if step.done is not None:
                step.done.synchronize()
            for row, owner in enumerate(step.owners.tolist()):
                slot = step.slots[owner]
                if slot is None or slot.settings.trace is None or not slot.settings.traced:
                    continue
                if slot.settings.trace in self._ended:
                    continue
                # The row at the prompt's last position gives the first generated token. Earlier positions are
                # prompt logprobs, or a chunk of a prompt whose sample vLLM throws away.
                index = int(step.positions[row]) - (slot.num_prompt_tokens - 1)
                if index < 0:
                    continue
                values = step.values[row].tolist()
                alpha = [0.0] * self._batch.num_experts
                for expert, value in zip(step.experts, values, strict=False):
                    alpha[expert] = value
                targets, results, fallback = values[-5:-3], values[-3:-1], bool(values[-1])
                self._rows[slot.settings.trace].append(
                    (slot.serial, index, int(step.fed[row]), alpha, targets, results, fallback)
                )
        while len(self._rows) > MAX_KEPT_TRACES:
            self._rows.pop(next(iter(self._rows)))


class TraceWorkerExtension:
    """Mixed into vLLM's worker (`worker_extension_cls`), so that `collective_rpc` reaches the trace log."""

    def take_fusion_trace(self, trace: str, last: bool) -> list[TraceRow]:
        """Rows of `trace` since the last call; empty on workers that hold no logits."""
        log: TraceLog = self.get_model().trace_log  # type: ignore[attr-defined]
        return log.take(trace, last)

    def count_fusion_traces(self) -> tuple[int, int]:
        """How many traces and steps this worker keeps at the moment."""
        log: TraceLog = self.get_model().trace_log  # type: ignore[attr-defined]
        return log.kept
