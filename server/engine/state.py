"""The composite's model state: the one owner of what each request asked, which members it runs, whose row is whose.

vLLM's Model Runner V2 asks a model for a state of its own (`get_model_state_cls`) and calls it, outside any compiled
or captured code:

1. `add_request`, `remove_request`: a request enters a slot with its sampling parameters, and leaves it.
2. `prepare_attn`: before every forward pass, with the layout of the step. The large model gets its attention metadata.
3. `prepare_inputs`: the small members run here, each on the tokens of those requests alone that use it. They depend
   on token ids, positions and their own KV cache only, so the large model's forward pass that follows is a plain one,
   whole CUDA graphs included.
4. `compute_logits` of the model: first with the rows that are sampled, one or more per request in the step's order,
   then perhaps with the positions of prompts whose logprobs are asked for. `rows_of` says which are which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.states import RequestState

from fusion_kernels.batch import Batch
from server.engine import cpu_runner, self_check
from server.engine.aggregates import Aggregates
from server.engine.member import AttentionGroups, SmallMember
from server.engine.own_prompts import Room
from server.engine.routing.choosing import Choosing
from server.engine.running import run_members
from server.engine.settings import ANY, FusionSettings
from server.engine.slots import Rows, Slot, SlotTable
from server.engine.speculation.ends import AnswerEnds
from server.engine.speculation.outcome import Outcome
from server.engine.speculation.sampler import MatchingSampler
from server.engine.step import CallRows, ForwardPass, MemberRows, Step, has_whole_prompt
from server.engine.sub_batch import SubBatch
from server.engine.trace import TraceLog

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache

    from fusion_kernels import Fused
    from server.engine.sides import Sides

LARGE_PREFIX = "large."


class FusionModelState(DefaultModelState):
    """The state of one worker."""

    def __init__(
        self, vllm_config: VllmConfig, model: nn.Module, encoder_cache: EncoderCache | None, device: torch.device
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        composite: Any = model  # `server.engine.composite`, which names this class and so stands above it
        self.composite = composite
        fusion = vllm_config.model_config.hf_config.fusion
        self.table = SlotTable(self.max_num_reqs, len(fusion["experts"]), device, fusion["most_parts"])
        composite.finish_loading(self.table)
        self.members: list[SmallMember | None] = composite.small_members
        """By number; `None` where nothing has a KV cache of its own."""
        self.choosing = Choosing(fusion["routers"], fusion["experts"])
        self.trace_log = TraceLog(self.table)
        self._presets: int = fusion["presets"]
        self._pairs = np.array(fusion["pairs"], dtype=np.int64).reshape(-1, 2, 2)
        """[T, 2, 2]: the pairs of each expert: that of requests with prompts of its own, that of all others."""
        self.aggregates = Aggregates(self.table, self._presets, vllm_config.num_speculative_tokens)
        self.watched: list[self_check.Step] | None = None
        """Filled while the server checks itself, whose request counts for nobody."""
        self._everyone: bool = fusion.get("everyone", False)
        """Whether every member runs for every request, whether it uses it or not; for tests."""
        self._slot_of: dict[str, int] = {}
        self.ends = AnswerEnds(self.max_num_reqs, device) if vllm_config.num_speculative_tokens else None
        """Where answers end; of engines that speculate."""
        self.block_tables: BlockTables
        self.room = Room(1, self.max_model_len)
        self._prepared: ForwardPass | None = None
        self._pass: ForwardPass | None = None
        self._profiled: tuple[torch.Tensor, torch.Tensor] | None = None
        """Token ids and positions of a pass without requests or attention."""
        self._tokens: torch.Tensor | None = None
        """[slots, positions] what each request has read and said, kept by the model runner."""
        composite.state = self
        if device.type == "cpu":
            cpu_runner.warm_up()

    def begin_watching(self) -> None:
        """Keep what is fused from now on, and count none of it.

        Nor what vLLM asked of itself before: on GPUs it warms its kernels up with requests like any other.
        """
        self.watched = []
        self.aggregates = Aggregates(self.table, self._presets, self.vllm_config.num_speculative_tokens)

    # --- requests -----------------------------------------------------------------------------------------------

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """A request enters a slot, for the first time or again after a preemption."""
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        assert params is not None
        settings = FusionSettings.of(params)
        wants_prompt = params.prompt_logprobs is not None or params.prompt_logprob_token_ids is not None
        self._slot_of[new_req_data.req_id] = req_index
        generated = (new_req_data.prefill_token_ids or [])[new_req_data.prompt_len :]
        whole = [] if settings.route is None else list(new_req_data.prefill_token_ids or [])
        slot = Slot(settings, new_req_data.prompt_len, generated, whole, wants_prompt)
        self.table.add(req_index, slot, self.room.block_size)
        if self.ends is not None:
            if settings.drafter is None:
                self.ends.forget(req_index)
            else:
                self.ends.add(req_index, params, new_req_data.prompt_len, self.max_model_len)
        self.aggregates.begin(req_index, (params.max_tokens or 0) - len(generated))

    def remove_request(self, req_id: str) -> None:
        """A request ended, was dropped or is preempted; vLLM also asks for ids that it does not know."""
        super().remove_request(req_id)
        index = self._slot_of.pop(req_id, None)
        if index is None:
            return
        if self.scheduler_config.async_scheduling and not self.aggregates.reached_limit(index):
            # The step that was under way when its last token became known, or when it was preempted, computed one
            # more that nobody gets.
            self.aggregates.retract(index)
        self.table.remove(index)

    def apply_staged_writes(self) -> None:
        """New requests are complete: make their settings known to the device."""
        super().apply_staged_writes()
        self.table.flush()

    # --- a forward pass -----------------------------------------------------------------------------------------

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: CUDAGraphMode,
        block_tables: tuple[torch.Tensor, ...],
        slot_mappings: torch.Tensor,
        attn_groups: AttentionGroups,
        kv_cache_config: KVCacheConfig,
        for_capture: bool = False,
        ubatch_idx: int = 0,
        model_specific_attn_metadata: Any = None,
    ) -> dict[str, Any]:
        """Attention metadata of the large model's layers; the step is noted for the small members."""
        for member in filter(None, self.members):
            member.take_groups(attn_groups, self.vllm_config.cache_config, self.device)
        # A dummy batch has no prompts.
        dummy = not input_batch.prefill_len_np.any()
        self._prepared = ForwardPass(input_batch, block_tables, slot_mappings, kv_cache_config, dummy)
        return super().prepare_attn(
            input_batch,
            cudagraph_mode,
            block_tables,
            slot_mappings,
            [[group for group in groups if _has_large_layers(group)] for groups in attn_groups],
            kv_cache_config,
            for_capture,
            ubatch_idx,
            model_specific_attn_metadata,
        )

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, torch.Tensor | None]:
        """Run the small members of this step; the large model's inputs are vLLM's own."""
        step, self._prepared = self._prepared, None
        self._pass = self._profiled = None
        if step is None or step.batch is not input_batch:
            self._profiled = input_batch.input_ids, input_batch.positions
        else:
            self._pass = step
            self._tokens = req_states.all_token_ids.gpu
            run_members(self, step, everyone=self._everyone)
        return super().prepare_inputs(input_batch, req_states)

    def metadata(
        self,
        sub: SubBatch,
        groups: AttentionGroups,
        kv_cache_config: KVCacheConfig,
        mode: CUDAGraphMode,
        for_capture: bool,
    ) -> dict[str, Any]:
        """Attention metadata by layer of a member's sub-batch."""
        return super().prepare_attn(
            sub.batch, mode, sub.block_tables, sub.slot_mappings, groups, kv_cache_config, for_capture
        )

    # --- CUDA graphs --------------------------------------------------------------------------------------------

    def initialize_kv_cache(self, kv_cache_config: KVCacheConfig, block_tables: BlockTables) -> None:
        """There is a new KV cache; vLLM profiles the memory of graphs over one that it throws away."""
        super().initialize_kv_cache(kv_cache_config, block_tables)
        self.block_tables = block_tables
        self.room = Room.of(kv_cache_config, self.max_model_len, self.max_num_tokens)
        self._prepared = self._pass = self._profiled = None
        self.composite.bind_kv_cache(kv_cache_config)
        for member in filter(None, self.members):
            member.forget()

    def capture_inner_cudagraphs(
        self,
        input_buffers: InputBuffers,
        block_tables: BlockTables,
        attn_groups: AttentionGroups,
        kv_cache_config: KVCacheConfig,
    ) -> None:
        """Capture the members' own graphs, where the large model has whole ones for decode steps."""
        if self.vllm_config.compilation_config.cudagraph_mode.decode_mode() != CUDAGraphMode.FULL:
            return
        # Requests that speculate have their drafts' tokens in a step; drafting itself is one token at a time.
        new_tokens, drafts = self.num_new_sampled_tokens_per_step, self.vllm_config.num_speculative_tokens
        query_lens = [new_tokens + number for number in range(drafts + 1)]
        for member in filter(None, self.members):
            member.take_groups(attn_groups, self.vllm_config.cache_config, self.device)
            member.capture(self.metadata, query_lens, block_tables, kv_cache_config)

    # --- speculation --------------------------------------------------------------------------------------------

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any] | None:
        """vLLM's sampler, and where the engine speculates, what verifies drafts; `None` leaves both to vLLM."""
        steps = self.vllm_config.num_speculative_tokens
        return (sampler, MatchingSampler(sampler, steps, self._settle)) if steps else None

    @property
    def last_pass(self) -> ForwardPass | None:
        """The newest forward pass over real requests."""
        return None if self._pass is None or self._pass.dummy else self._pass

    def drafters(self, batch: InputBatch) -> np.ndarray:
        """[B] the number of the member that drafts for each request of a step, -1 for none."""
        return np.where(has_whole_prompt(batch), self.table.drafter[batch.idx_mapping_np], -1)

    def speculates(self, req_id: str) -> bool:
        """Whether a member drafts for a request."""
        slot = self._slot_of.get(req_id)
        return slot is not None and bool(self.table.drafter[slot] >= 0)

    def draft_logits(self, member: SmallMember, hidden: torch.Tensor) -> torch.Tensor:
        """A member's logits [m, V] over ids that the large model has too, of its hidden states."""
        logits: torch.Tensor = member.model.compute_logits(hidden)
        return logits[:, : self.model_config.get_vocab_size()]

    def _settle(self, batch: InputBatch, sampled: torch.Tensor, num_sampled: torch.Tensor) -> None:
        """Take the rows of rejected drafts, and those past an answer's end, out of what was recorded of the step."""
        if self.watched is not None:
            return
        assert self.ends is not None
        first = batch.positions[batch.logits_indices[batch.cu_num_logits[:-1].long()]]
        delivered = self.ends.delivered(batch.idx_mapping, sampled, num_sampled, first)
        outcome = Outcome(batch, num_sampled, delivered)
        self.aggregates.settle(outcome)
        self.trace_log.settle(outcome)

    def postprocess_state(self, *args: Any, **kwargs: Any) -> None:
        """A step's tokens are sampled, and in the model runner's table of them."""
        super().postprocess_state(*args, **kwargs)
        if self._tokens is not None:
            self.trace_log.choose(self._tokens)

    # --- logits -------------------------------------------------------------------------------------------------

    @property
    def max_rows(self) -> int:
        """The most rows that a call has at once: as many as the memory profile had."""
        return self.max_num_reqs * (self.vllm_config.num_speculative_tokens + self.num_new_sampled_tokens_per_step)

    def rows_of(self, hidden: torch.Tensor) -> CallRows:
        """What a `compute_logits` call with the large model's hidden states [N, width] asks."""
        current = self._pass
        if current is None or current.dummy:
            return self._profiling_rows(hidden)
        if not current.sampled:
            current.sampled = True
            return current.sampled_rows(hidden.shape[0])
        return current.prompt_rows(hidden)

    def _profiling_rows(self, hidden: torch.Tensor) -> CallRows:
        number = hidden.shape[0]
        if self._profiled is not None:
            # Here rather than before the large model's pass: what compiles first is the measure of shared workspaces.
            states = [None if member is None else member.profile(*self._profiled) for member in self.members]
        else:
            assert self._pass is not None
            states = [None if member is None else member.hidden for member in self._pass.members]
        # Any rows will do; there may be fewer than the call has.
        index = torch.arange(number, device=hidden.device)
        rows = [None if state is None else MemberRows(state[index % state.shape[0]], None) for state in states]
        return CallRows(number, None, None, rows, None)

    def experts_of(self, call: CallRows) -> list[int]:
        """The experts that any row of a call uses, by their indices."""
        if call.owners is None:
            return list(range(self.table.num_experts))
        used = (self.table.pairs[call.owners, :, 0] != ANY).any(0)
        return [int(expert) for expert in np.flatnonzero(used)]

    def pairs_of(self, call: CallRows, expert: int) -> np.ndarray:
        """[N, 2]: the members of an expert's pair, row by row."""
        if call.owners is None:
            # Rows of both kinds cost the most: their logits are put together in memory of their own.
            return np.resize(self._pairs[expert], (call.number, 2))
        pairs: np.ndarray = self.table.pairs[call.owners, expert]
        return pairs

    def settings_of(self, call: CallRows, experts: list[int]) -> Rows:
        """What the rows of a call ask, over the `experts` that any of them uses.

        Rows that belong to no request cost the most that rows can.
        """
        rows = self.table.dearest_rows(call.number) if call.slots is None else self.table.rows(call.slots)
        return rows.of_experts(experts)

    def watch(
        self, large: torch.Tensor, against: list[torch.Tensor], experts: list[torch.Tensor], rows: Rows, fused: Fused
    ) -> None:
        """Keep a step that fused, where somebody looks."""
        if self.watched is not None:
            batch = Batch(large, against, experts, rows.kind, rows.use, rows.alpha, rows.alpha_max)
            self.watched.append(self_check.Step(batch, fused))

    def record(
        self,
        step: Step,
        large: torch.Tensor,
        settings: Rows | None,
        fused: Fused | None,
        experts: list[int],
        sides: Sides | None,
    ) -> None:
        """Note a step's rows for counters and traces: the large model's logits, what came of fusing `experts`, and
        their `sides`; `None` where nothing was fused.
        """
        if self.watched is not None:
            return
        self.aggregates.record(step, None if settings is None else settings.use, fused, experts)
        self.trace_log.record(step, large, fused, experts, sides)


def _has_large_layers(group: Any) -> bool:
    return any(name.startswith(LARGE_PREFIX) for name in group.layer_names)
