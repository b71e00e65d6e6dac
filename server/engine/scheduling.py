"""vLLM's schedulers, with room in the KV cache for members that are ahead of a request (`own_prompts`).

Stands on `KVCacheManager.allocate_slots` (vLLM 0.32), which takes the number of places that a request needs past those
of its tokens, the same for all requests: here each has its own.
"""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.request import Request

from server.engine.own_prompts import block_size_of, places_ahead
from server.engine.settings import EXTRA_ARG


class RoomAhead:
    """Stands before a scheduler of vLLM's."""

    kv_cache_manager: KVCacheManager
    kv_cache_config: KVCacheConfig
    vllm_config: VllmConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        allocate, block_size = self.kv_cache_manager.allocate_slots, block_size_of(self.kv_cache_config)
        self._left = 0
        """Of the step that is being scheduled: tokens that members of new requests may read to get ahead."""

        def allocate_ahead(request: Request, num_new_tokens: int, **options: Any) -> Any:
            ahead = _ahead(request, block_size)
            begins = bool(ahead) and not request.num_computed_tokens
            if begins and ahead > self._left < self.vllm_config.scheduler_config.max_num_batched_tokens:
                return None  # in the next step
            options["num_lookahead_tokens"] = options.get("num_lookahead_tokens", 0) + ahead
            blocks = allocate(request, num_new_tokens, **options)
            if begins and blocks is not None:
                self._left -= ahead
            return blocks

        self.kv_cache_manager.allocate_slots = allocate_ahead  # type: ignore[method-assign, assignment]

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Schedule a step; of requests whose members must get ahead, one at least and no more than a step reads."""
        self._left = self.vllm_config.scheduler_config.max_num_batched_tokens
        output: SchedulerOutput = super().schedule(throttle_prefills)  # type: ignore[misc]
        return output


class FusionScheduler(RoomAhead, Scheduler):
    """Where a step is scheduled when the one before it is over."""


class AsyncFusionScheduler(RoomAhead, AsyncScheduler):
    """Where a step is scheduled while the one before it runs."""


def _ahead(request: Request, block_size: int) -> int:
    params = request.sampling_params
    fusion = (params.extra_args or {}).get(EXTRA_ARG) if params is not None else None
    if not fusion or not fusion["prompts"]:
        return 0
    return places_ahead(dict(fusion["prompts"]), request.num_prompt_tokens, block_size)
