"""One step of the engine: what is kept of its forward pass, and the rows that `compute_logits` is called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from vllm.utils import torch_utils
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.input_batch import InputBatch

from server.engine.sub_batch import SubBatch, to_device


@dataclass(frozen=True, eq=False)
class MemberRows:
    """The part of a `compute_logits` call that a member has."""

    hidden: torch.Tensor  # [l, width]
    rows: torch.Tensor | None  # [l] among the call's rows; `None`: all of them, in order


@dataclass(frozen=True, eq=False)
class CallRows:
    """What a `compute_logits` call of N rows needs to know beside the large model's hidden states."""

    number: int
    slots: torch.Tensor | None
    """[N] the slot of each row; `None` where the rows belong to no request."""
    owners: np.ndarray | None
    """The same on the host."""
    members: Sequence[MemberRows | None]
    """By the members' numbers; `None` for those that no row uses."""
    step: Step | None
    """Where the rows are those of a step that samples: its record for counters and traces."""


@dataclass(frozen=True, eq=False)
class Step:
    """One forward pass over real requests."""

    batch: InputBatch
    slots: np.ndarray
    """[N] the slot of each sampled row."""
    generates: np.ndarray
    """[N] bool: the row gives a new token; a chunk of a prompt that is not its last gives none."""


@dataclass(frozen=True, eq=False)
class MemberStates:
    """What a small member made of its sub-batch."""

    sub: SubBatch
    hidden: torch.Tensor
    """[tokens, width] where `whole`, else of the sampled rows alone."""
    wants_prompt: bool
    """Whether logits of prompts may be asked for."""
    whole: bool

    @classmethod
    def kept(cls, sub: SubBatch, hidden: torch.Tensor, wants_prompt: bool) -> MemberStates:
        """Of a member's hidden states, those that logits may be asked of, in memory of their own.

        On GPUs a compiled or captured model's output lies in memory that the next member's graphs may take again.
        """
        if sub.logit_tokens is None or wants_prompt:
            return cls(sub, hidden.clone(), wants_prompt, whole=sub.logit_tokens is not None)
        return cls(sub, hidden[sub.logit_tokens], wants_prompt, whole=False)

    @classmethod
    def joined(cls, passes: Sequence[MemberStates]) -> MemberStates:
        """Of a step that the member ran in several passes."""
        if len(passes) == 1:
            return passes[0]
        subs = [one.sub for one in passes]
        sizes = np.cumsum([0, *(one.hidden.shape[0] for one in passes)])
        tokens = np.concatenate([sub.tokens for sub in subs if sub.tokens is not None])
        starts = zip(subs, sizes.tolist(), strict=False)
        logit_tokens = [sub.logit_tokens + start for sub, start in starts if sub.logit_tokens is not None]
        joined = replace(
            subs[-1],
            tokens=tokens,
            logit_tokens=torch.cat(logit_tokens),
            logit_rows=torch.cat([sub.logit_rows for sub in subs if sub.logit_rows is not None]),
        )
        return cls(joined, torch.cat([one.hidden for one in passes]), passes[0].wants_prompt, passes[0].whole)

    def sampled(self) -> MemberRows | None:
        """The rows that are sampled; `None` before the member's own prompt has begun."""
        hidden = self.hidden[self.sub.logit_tokens] if self.whole else self.hidden
        return MemberRows(hidden, self.sub.logit_rows) if hidden.shape[0] else None

    def between(self, first: int, end: int) -> MemberRows | None:
        """The rows of the step's tokens from `first` to before `end`; `None` where the member has none of them."""
        if not self.wants_prompt:
            return None
        if self.sub.tokens is None:
            return MemberRows(self.hidden[first:end], None)
        own = np.flatnonzero((self.sub.tokens >= first) & (self.sub.tokens < end))
        if not len(own):
            return None
        index, rows = to_device(self.hidden.device, own, self.sub.tokens[own] - first)
        return MemberRows(self.hidden[index], rows)


def has_whole_prompt(batch: InputBatch) -> np.ndarray:
    """[B] bool: after this step a request has read its whole prompt, and so gets a token."""
    ends = batch.num_computed_tokens_np + batch.num_scheduled_tokens
    whole: np.ndarray = ends >= batch.prefill_len_np
    return whole


@dataclass(eq=False)
class ForwardPass:
    """What is kept of a forward pass from `prepare_attn` to the last `compute_logits`."""

    batch: InputBatch
    block_tables: tuple[torch.Tensor, ...]
    slot_mappings: torch.Tensor
    kv_cache_config: KVCacheConfig
    dummy: bool
    members: list[MemberStates | None] = field(default_factory=list)
    """By the members' numbers; `None` for those that no request of the step uses."""
    sampled: bool = False
    """Whether `compute_logits` has had the sampled rows."""

    def sampled_rows(self, number: int) -> CallRows:
        """The call with the `number` rows that are sampled, in the step's order."""
        batch = self.batch
        assert number == batch.cu_num_logits_np[-1], "the first rows of a step are those that are sampled"
        per_request = np.diff(batch.cu_num_logits_np)
        step = Step(
            batch,
            np.repeat(batch.idx_mapping_np, per_request),
            np.repeat(has_whole_prompt(batch), per_request),
        )
        members = [None if member is None else member.sampled() for member in self.members]
        return CallRows(number, batch.expanded_idx_mapping, step.slots, members, step)

    def prompt_rows(self, hidden: torch.Tensor) -> CallRows:
        """The call with a stretch of the step's tokens, cut out of the large model's output: `hidden` [N, width]."""
        batch = self.batch
        first = hidden.storage_offset() // hidden.stride(0)
        end = first + hidden.shape[0]
        owners = np.repeat(batch.idx_mapping_np, np.diff(batch.query_start_loc_np[: batch.num_reqs + 1]))[first:end]
        slots = torch_utils.async_tensor_h2d(owners.astype(np.int64), device=hidden.device)
        members = [None if member is None else member.between(first, end) for member in self.members]
        return CallRows(hidden.shape[0], slots, owners, members, None)
