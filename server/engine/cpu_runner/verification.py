"""Speculative verification: which drafts are taken, and the token after them (Leviathan et al., 2023)."""

# mypy: disable-error-code="untyped-decorator"
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from server.engine.cpu_runner.arrays import array, compiled, readable, value
from server.engine.cpu_runner.likelihoods import NO_DRAFTS, for_both, log_sum
from server.engine.cpu_runner.noise import uniform
from server.engine.cpu_runner.sampling import choose

_NO_RATES = np.zeros(0, np.float32)


def rejection(
    sampled: Tensor,
    rejected_steps: Tensor,
    target_rejected_logsumexp: Tensor,
    draft_rejected_logsumexp: Tensor,
    target_logits: Tensor,
    target_local_argmax: Tensor,
    target_local_max: Tensor,
    target_local_sumexp: Tensor,
    draft_sampled: Tensor,
    draft_logits: Tensor | None,
    draft_local_max: Tensor,
    draft_local_sumexp: Tensor,
    cu_num_logits: Tensor,
    idx_mapping: Tensor,
    temp: Tensor,
    seed: Tensor,
    pos: Tensor,
    synthetic_conditional_rates: Tensor | None,
    use_block_verification: bool,
) -> None:
    """spec_decode.rejection_sampler_utils._rejection_kernel: take drafts until the first that is rejected.

    At temperature 0 a draft is taken if it is the likeliest token, else with probability min(1, p / q).

    Args:
        sampled: [B, steps + 1] int64, a result: the drafts looked at; at temperature 0 the likeliest tokens.
        rejected_steps: [B] int32, a result: how many were taken.
        target_rejected_logsumexp, draft_rejected_logsumexp: [B] float32, results, of the rejected draft's row.
        target_logits: [rows, >= V], divided by the temperature.
        target_local_argmax, target_local_max, target_local_sumexp, draft_local_max, draft_local_sumexp: as
            `likelihoods.compute_local_logits_stats` left them.
        draft_sampled: [rows] int32, input token of each row; -1 is never taken.
        draft_logits: [slots, steps, >= V], or None where drafts have no distribution (q = 1).
        cu_num_logits: [B + 1] int32.
        idx_mapping: [B] int64, slots.
        temp, seed: [slots] float32, int64.
        pos: [rows] int64.
        synthetic_conditional_rates: [steps] float32, take drafts with these probabilities instead, or None.

    Raises:
        NotImplementedError: with `use_block_verification`.
    """
    if use_block_verification:
        raise NotImplementedError('rejection_sample_method="block" is not supported on CPUs')
    results = (sampled, rejected_steps, target_rejected_logsumexp, draft_rejected_logsumexp)
    statistics = (target_local_argmax, target_local_max, target_local_sumexp, draft_local_max, draft_local_sumexp)
    rest = (draft_sampled, cu_num_logits, idx_mapping, temp, seed, pos)
    verify(
        *(array(part) for part in results),
        readable(target_logits),
        NO_DRAFTS if draft_logits is None else readable(draft_logits),
        *(array(part) for part in statistics),
        *(array(part) for part in rest),
        _NO_RATES if synthetic_conditional_rates is None else array(synthetic_conditional_rates),
    )


@for_both(
    "void(int64[:,:], int32[:], float32[:], float32[:], target, draft, int64[:,:], float32[:,:], float32[:,:],"
    " float32[:,:], float32[:,:], int32[:], int32[:], int64[:], float32[:], int64[:], int64[:], float32[:])"
)
def verify(
    sampled: Any, taken: Any, target_lse: Any, draft_lse: Any, target: Any, draft: Any, winners: Any, tops: Any,
    sums: Any, draft_tops: Any, draft_sums: Any, drafts: Any, starts: Any, slots: Any, temps: Any, seeds: Any,
    positions: Any, rates: Any,
) -> None:  # fmt: skip
    """`rejection`; `draft` and `rates` are empty where they are None."""
    for i in range(slots.size):
        slot = slots[i]
        temperature, first = temps[slot], starts[i]
        taken[i], target_lse[i], draft_lse[i] = 0, 0.0, 0.0
        for step in range(starts[i + 1] - first - 1):
            row = first + step
            token = np.int64(drafts[row + 1])
            chance = uniform(seeds[slot], positions[row])
            if temperature == 0.0:
                likeliest = winners[row, tops[row].argmax()]
                accepted = token >= 0 and (chance < rates[step] if rates.size else likeliest == token)
                sampled[i, step] = token if accepted else likeliest
            else:
                if token < 0:
                    break
                sampled[i, step] = token
                target_lse[i] = log_sum(tops[row], sums[row])
                log_q = np.float32(0.0)
                if draft.size:
                    draft_lse[i] = log_sum(draft_tops[row], draft_sums[row])
                    log_q = value(draft[slot, step], token) / temperature - draft_lse[i]
                log_p = value(target[row], token) - target_lse[i]
                accepted = chance < rates[step] if rates.size else log_p > np.float32(math.log(chance)) + log_q
            if not accepted:
                break
            taken[i] += 1


def resample(
    resampled_local_argmax: Tensor,
    resampled_local_max: Tensor,
    target_logits: Tensor,
    target_rejected_logsumexp: Tensor,
    draft_logits: Tensor | None,
    draft_rejected_logsumexp: Tensor,
    rejected_step: Tensor,
    cu_num_logits: Tensor,
    expanded_idx_mapping: Tensor,
    draft_sampled: Tensor,
    temp: Tensor,
    seed: Tensor,
    pos: Tensor,
    vocab_size: int,
    use_fp64: bool,
    use_block_verification: bool,
    watermark: bool,
) -> None:
    """spec_decode.rejection_sampler_utils._resample_kernel: the token after the drafts that were taken, by blocks.

    After a rejected draft it is drawn from max(p - q, 0), after none from p.

    Args:
        resampled_local_argmax, resampled_local_max: [B, blocks of 1,024] int64, float32 (float64), the results.
        target_logits: [rows, >= V], divided by the temperature.
        target_rejected_logsumexp, draft_rejected_logsumexp, rejected_step: as `rejection` left them.
        draft_logits: [slots, steps, >= V], or None where drafts have no distribution.
        cu_num_logits, expanded_idx_mapping: [B + 1] int32, [rows] int64, slots.
        draft_sampled: [rows] int32, input token of each row.
        temp, seed: [slots] float32, int64.
        pos: [rows] int64.
        vocab_size: V.
        use_fp64: noise in float64.

    Raises:
        NotImplementedError: with `use_block_verification` or `watermark`.
    """
    if use_block_verification or watermark:
        feature = "watermarking" if watermark else 'rejection_sample_method="block"'
        raise NotImplementedError(f"{feature} is not supported on CPUs")
    row = (cu_num_logits[:-1] + rejected_step).long()
    slot = expanded_idx_mapping[row]
    logits = target_logits[row, :vocab_size].float()
    temperature = temp[slot]
    after = draft_sampled[(row + 1).clamp(max=draft_sampled.numel() - 1)].long()
    rejected = (row != cu_num_logits[1:] - 1) & (after >= 0) & (temperature != 0)
    if rejected.any():
        if draft_logits is None:
            logits[rejected, after[rejected]] = -math.inf
        else:
            which = (slot[rejected], rejected_step[rejected].long())
            log_q = draft_logits[which][:, :vocab_size].float() / temperature[rejected, None]
            log_q -= draft_rejected_logsumexp[rejected, None]
            log_p = logits[rejected] - target_rejected_logsumexp[rejected, None]
            ratio = (log_q - log_p).exp()
            logits[rejected] = torch.where(ratio < 1, log_p + torch.log1p(-ratio), -math.inf)
    choose(
        resampled_local_argmax, resampled_local_max, logits, slot, seed, pos[row], temp, False, False, use_fp64
    )  # fmt: skip


@compiled("void(int64[:,:], int32[:], int64[:,:], float32[:,:], int32[:], int64[:], float32[:])",
          "void(int64[:,:], int32[:], int64[:,:], float64[:,:], int32[:], int64[:], float32[:])")  # fmt: skip
def insert_resampled(
    sampled: Any, num_sampled: Any, resampled_local_argmax: Any, resampled_local_max: Any, cu_num_logits: Any,
    expanded_idx_mapping: Any, temp: Any,
) -> None:  # fmt: skip
    """spec_decode.rejection_sampler_utils._insert_resampled_kernel: append what `resample` chose.

    At temperature 0 the likeliest token is there already, except after the last draft.

    Args:
        sampled: [B, steps + 1] int64, changed.
        num_sampled: [B] int32, changed: one more.
        resampled_local_argmax, resampled_local_max: as `resample` left them.
        cu_num_logits: [B + 1] int32.
        expanded_idx_mapping: [rows] int64, slots.
        temp: [slots] float32.
    """
    for i in range(num_sampled.size):
        taken = num_sampled[i]
        row = cu_num_logits[i] + taken
        num_sampled[i] = taken + 1
        if temp[expanded_idx_mapping[row]] != 0.0 or row == cu_num_logits[i + 1] - 1:
            sampled[i, taken] = resampled_local_argmax[i, resampled_local_max[i].argmax()]
