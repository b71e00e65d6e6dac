"""vLLM's worker for CPUs, with seeded sampling that survives chunked prefill.

vLLM 0.32 samples in every step, also for a request whose prompt is not yet read to its end, throws that token away
and then takes the request's random generator one draw back: `generator.set_offset(generator.get_offset() - 4)`. The
generators of CPUs have no offset. They raise "CPU Generator does not use offset", and the engine dies of one request
with a `seed` and a prompt longer than a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.worker_base import CompilationTimes

from server.engine import cpu_runner


class FusionCPUWorker(CPUWorker):
    """Keeps the generators of requests whose sample is thrown away out of the step, so none needs to be taken back."""

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """As vLLM's, and Model Runner V2's functions are compiled before the first request."""
        if self.use_v2_model_runner:
            cpu_runner.warm_up(speculation=self.vllm_config.speculative_config is not None)
        return super().compile_or_warm_up_model()

    def sample_tokens(self, grammar_output: Any) -> Any:
        """As vLLM's; a row without a generator draws from the common one."""
        with _unread_prompts_put_aside(self.model_runner):
            return super().sample_tokens(grammar_output)


@contextmanager
def _unread_prompts_put_aside(runner: Any) -> Iterator[None]:
    batch = runner.input_batch
    # The batch and this step's sampling metadata share the dictionary.
    generators: dict[int, Any] = batch.generators
    discarded = runner.discard_request_mask.np[: batch.num_reqs]
    aside = {index: generators.pop(index) for index in list(generators) if discarded[index]}
    try:
        yield
    finally:
        generators.update(aside)
