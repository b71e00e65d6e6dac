"""Drafts by the members that are loaded: no second copy of their weights, no KV cache of a drafter's own.

A member that drafts for a request has read all of its tokens but the newest: it runs for the request in every forward
pass (`server.engine.state`), on verified and drafted tokens alike, and so leaves in its KV cache what accepted tokens
need. A draft therefore takes K small passes of one token each, from the newest token on. What they leave in the KV
cache lies past the verified tokens, where the next pass writes again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.utils import torch_utils
from vllm.v1.attention.backends.utils import PAD_SLOT_ID
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample
from vllm.v1.worker.gpu.spec_decode.speculator import BaseSpeculator

from server.engine.sub_batch import SubBatch

if TYPE_CHECKING:
    from vllm.config.compilation import CUDAGraphMode

    from server.engine.member import SmallMember
    from server.engine.state import FusionModelState
    from server.engine.step import ForwardPass

_NO_DRAFT = -1


class MemberSpeculator(BaseSpeculator):
    """vLLM's speculator of one worker."""

    draft_logits = None
    """Drafts are compared, not weighed (`server.engine.speculation.sampler`)."""
    supports_mm_inputs = False
    state: FusionModelState
    """Set when the models are loaded."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        self._steps = vllm_config.num_speculative_tokens
        self._use_fp64: bool = vllm_config.model_config.use_fp64_gumbel
        self._max_model_len: int = vllm_config.model_config.max_model_len
        self._drafts = torch.full(
            (vllm_config.scheduler_config.max_num_seqs, self._steps), _NO_DRAFT, dtype=torch.int64, device=device
        )

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        """The members have graphs of their own."""

    def capture(self) -> None:
        """The members' graphs are captured with the model's (`FusionModelState.capture_inner_cudagraphs`)."""

    @torch.inference_mode()
    def propose(
        self,
        input_batch: InputBatch,
        attn_metadata: Any,
        slot_mappings: Any,
        last_hidden_states: torch.Tensor,
        aux_hidden_states: list[torch.Tensor] | None,
        num_sampled: torch.Tensor,
        num_rejected: torch.Tensor,
        last_sampled: torch.Tensor,
        next_prefill_tokens: torch.Tensor,
        temperature: torch.Tensor,
        seeds: torch.Tensor,
        dp_sync_state: Any = None,
        dummy_run: bool = False,
        skip_attn_for_dummy_run: bool = False,
        mm_inputs: Any = None,
        is_profile: bool = False,
        num_speculative_tokens: int | None = None,
    ) -> torch.Tensor:
        """Drafts [B, K] int64 of the tokens after the newest of each request; -1 where nothing drafts."""
        drafts = self._drafts[: input_batch.num_reqs].fill_(_NO_DRAFT)
        steps = self._steps if num_speculative_tokens is None else num_speculative_tokens
        step = self.state.last_pass
        if dummy_run or step is None:
            return drafts
        drafters = self.state.drafters(input_batch)
        if (drafters >= 0).any() and self.state.watched is None:
            self.state.aggregates.drafted(steps)
        if not steps:
            return drafts
        noise = _Noise(temperature, seeds)
        for number in np.unique(drafters[drafters >= 0]):
            group = _Group.of(step, np.flatnonzero(drafters == number))
            tokens = last_sampled[group.slots].view(-1)
            positions = (input_batch.seq_lens[group.index] - num_rejected[group.index]).long()
            found = self._draft(self.state.members[number], group, tokens, positions, noise, steps)
            drafts[group.index, :steps] = found
        return drafts

    def _draft(
        self,
        member: SmallMember,
        group: _Group,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        noise: _Noise,
        steps: int,
    ) -> torch.Tensor:
        """The next `steps` tokens [m, steps] by `member` after `tokens` [m] at `positions` [m]."""
        found = []
        for number in range(steps):
            sub = self._sub_batch(group, tokens, positions, number)
            hidden = member.run(sub, self.state.metadata, group.step.kv_cache_config)
            logits = self.state.draft_logits(member, hidden)
            # With the noise that the request's own token is drawn with.
            tokens = gumbel_sample(
                logits,
                group.slots,
                noise.temperature,
                noise.seeds,
                positions,
                apply_temperature=True,
                is_drafting=False,
                use_fp64=self._use_fp64,
            )
            found.append(tokens)
            positions = positions + 1
        return torch.stack(found, dim=1)

    def _sub_batch(self, group: _Group, tokens: torch.Tensor, positions: torch.Tensor, number: int) -> SubBatch:
        """One token of each request, as a decode step has it."""
        batch, m = group.step.batch, len(group.requests)
        starts_np = np.arange(m + 1, dtype=np.int32)
        starts = torch_utils.async_tensor_h2d(starts_np, device=tokens.device)
        # Past the end of what a request may hold nothing is kept, and what is drafted there nobody reads.
        inside = positions.clamp(max=self._max_model_len - 1)
        upper = batch.seq_lens_cpu_upper_bound[torch.from_numpy(group.requests)] + (1 + number)
        mappings = torch.empty(len(group.block_tables), m, dtype=torch.int64, device=tokens.device)
        self.state.block_tables.compute_slot_mappings(group.slots, starts, inside, m, out=mappings)
        mappings[:, :m].masked_fill_((positions >= self._max_model_len)[None], PAD_SLOT_ID)
        one = replace(
            batch,
            num_reqs=m,
            num_reqs_after_padding=m,
            idx_mapping_np=batch.idx_mapping_np[group.requests],
            num_scheduled_tokens=np.ones(m, dtype=batch.num_scheduled_tokens.dtype),
            num_tokens=m,
            num_tokens_after_padding=m,
            query_start_loc=starts,
            query_start_loc_np=starts_np,
            seq_lens=(inside + 1).to(batch.seq_lens.dtype),
            seq_lens_cpu_upper_bound=upper.clamp(max=self._max_model_len),
            is_prefilling_np=np.zeros(m, dtype=bool),
            has_prefill=False,
            input_ids=tokens.to(batch.input_ids.dtype),
            positions=inside,
            prompt_lens=None if batch.prompt_lens is None else batch.prompt_lens[torch.from_numpy(group.requests)],
            max_query_len=None,
            fast_prefill=None,
        )
        return SubBatch(one, group.block_tables, mappings, None, None, None)


@dataclass(frozen=True)
class _Noise:
    """What tokens are drawn with, by slot."""

    temperature: torch.Tensor
    seeds: torch.Tensor


@dataclass(frozen=True, eq=False)
class _Group:
    """The m requests of a step that one member drafts for."""

    step: ForwardPass
    requests: np.ndarray  # [m], by their places in the step
    index: torch.Tensor  # the same, on the device
    slots: torch.Tensor  # [m]
    block_tables: tuple[torch.Tensor, ...]  # [m, blocks] each

    @classmethod
    def of(cls, step: ForwardPass, requests: np.ndarray) -> _Group:
        mapping = step.batch.idx_mapping
        index = torch_utils.async_tensor_h2d(requests.astype(np.int64), device=mapping.device)
        return cls(step, requests, index, mapping[index], tuple(table[index] for table in step.block_tables))
