"""vLLM's worker with a speculator of ours: the one seam that vLLM 0.32 leaves for it.

`init_speculator` knows vLLM's own methods only, so the engine is configured for `draft_model`, which reserves the KV
blocks that drafts need, and the speculator that it makes (no weights yet) is replaced before the models are loaded.
"""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform
from vllm.v1.outputs import DraftTokenIds

from server.engine.speculation.speculator import MemberSpeculator

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker
else:
    from vllm.v1.worker.gpu_worker import Worker  # type: ignore[assignment]


class SpeculatingWorker(Worker):
    """The platform's worker, whose drafts come from the members."""

    def init_device(self) -> None:
        """Make the model runner, with our speculator in the place of vLLM's."""
        super().init_device()  # type: ignore[no-untyped-call]
        runner: Any = self.model_runner
        runner.speculator = MemberSpeculator(self.vllm_config, runner.device)

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """Load the models, and make their state known to the speculator."""
        super().load_model(load_dummy_weights=load_dummy_weights)
        runner: Any = self.model_runner
        runner.speculator.state = runner.model_state

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        """The drafts for the scheduler: none for requests that do not speculate, which so cost it no rows."""
        drafts = super().take_draft_token_ids()
        if drafts is None:
            return None
        runner: Any = self.model_runner
        speculates = runner.model_state.speculates
        tokens = [
            ids if speculates(request) else []
            for request, ids in zip(drafts.req_ids, drafts.draft_token_ids, strict=True)
        ]
        return DraftTokenIds(drafts.req_ids, tokens)
