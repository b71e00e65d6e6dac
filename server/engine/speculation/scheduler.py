"""vLLM's scheduler, with a number of drafts that follows what drafting earns.

The number is chosen here, by one clock, and reaches all workers with the step: ranks cannot disagree on it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput

from server.engine.speculation.pace import Pace


@dataclass
class _Step:
    """The step under way."""

    began: float
    requests: int
    drafts: int
    """Made in this step."""
    is_steady: bool
    """It verifies as many as it makes, and reads no prompt: its time tells what the number costs."""


class PacedScheduler(Scheduler):
    """The scheduler of an engine whose members draft."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # vLLM takes the schedule away where ranks of data parallelism would have to agree on the number.
        self._pace = None if self.dynamic_sd_lookup is None else Pace(self.num_spec_tokens)
        self._step: _Step | None = None
        self._drafts = 0

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Schedule a step, and say how many tokens to draft in it."""
        began = time.perf_counter()
        output = super().schedule(throttle_prefills)
        if self._pace is None:
            return output
        self._end_step(began)
        verified, requests = self._drafts, len(output.num_scheduled_tokens)
        if requests:
            self._drafts = output.num_spec_tokens_to_schedule = self._pace.choose(requests)
        reads = output.total_num_scheduled_tokens - sum(map(len, output.scheduled_spec_decode_tokens.values()))
        is_steady = verified == self._drafts and reads == requests
        self._step = _Step(began, requests, self._drafts, is_steady) if requests else None
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Learn what became of the drafts."""
        drafts = scheduler_output.scheduled_spec_decode_tokens
        if self._pace is not None and drafts:
            places, sampled = model_runner_output.req_id_to_index, model_runner_output.sampled_token_ids
            self._pace.gave(
                max(map(len, drafts.values())),
                [
                    len(sampled[places[name]]) - 1 if name in drafts else 0
                    for name in scheduler_output.num_scheduled_tokens
                    if sampled[places[name]]
                ],
            )
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        if not self.running:
            # The next step may be long in coming.
            self._end_step(time.perf_counter())
        return outputs

    def _end_step(self, now: float) -> None:
        if self._pace is not None and self._step is not None and self._step.is_steady:
            self._pace.took(self._step.requests, self._step.drafts, now - self._step.began)
        self._step = None
