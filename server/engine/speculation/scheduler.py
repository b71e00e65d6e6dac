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

from server.engine.scheduling import RoomAhead
from server.engine.speculation.pace import Pace


@dataclass
class _Step:
    """The step under way."""

    began: float
    requests: int
    number: int
    """Of drafts that it makes."""
    is_steady: bool
    """It verifies as many as it makes, and reads no prompt: its time tells what the number costs."""


class PacedScheduler(RoomAhead, Scheduler):
    """The scheduler of an engine whose members draft."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # vLLM takes the schedule away where ranks of data parallelism would have to agree on the number. With several
        # steps under way at once nobody could say what one takes.
        adapts = self.dynamic_sd_lookup is not None and self.vllm_config.max_concurrent_batches == 1
        self._pace = Pace(self.num_spec_tokens) if adapts else None
        self._step: _Step | None = None

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Schedule a step, and say how many tokens to draft in it."""
        began = time.perf_counter()
        output = super().schedule(throttle_prefills)
        if self._pace is None:
            return output
        self._end_step(began)
        requests = len(output.num_scheduled_tokens)
        if requests:
            number = output.num_spec_tokens_to_schedule = self._pace.choose(requests)
            drafts = [len(tokens) for tokens in output.scheduled_spec_decode_tokens.values()]
            only_decodes = output.total_num_scheduled_tokens == requests + sum(drafts)
            self._step = _Step(began, requests, number, only_decodes and max(drafts, default=0) == number)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Learn what became of the drafts."""
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        drafts = scheduler_output.scheduled_spec_decode_tokens
        if self._pace is not None and drafts:
            # Up to an answer's end: what is accepted past it nobody gets.
            got = {output.request_id: len(output.new_token_ids) for each in outputs.values() for output in each.outputs}
            self._pace.gave(
                max(map(len, drafts.values())),
                [number - 1 if name in drafts else 0 for name, number in got.items() if number],
            )
        if not self.running:
            # The next step may be long in coming.
            self._end_step(time.perf_counter())
        return outputs

    def _end_step(self, now: float) -> None:
        if self._pace is not None and self._step is not None and self._step.is_steady:
            self._pace.took(self._step.requests, self._step.number, now - self._step.began)
        self._step = None
