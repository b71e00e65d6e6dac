"""Verification that changes no token: every row is sampled as it would be without speculation, and then compared.

A draft is accepted where it is the token that its request samples at that place anyway. vLLM's sampler draws by the
request's seed and the position alone (Gumbel noise), so the tokens, seeded ones included, are those of a server that
does not speculate, up to float rounding of rows computed four at a time. Drafts are drawn with the same noise from the
drafting member's distribution, which makes both choose alike wherever the two distributions are alike: the Gumbel
coupling of Daliri, Musco and Suresh, "Coupling without Communication and Drafter-Invariant Speculative Decoding",
https://arxiv.org/abs/2408.07978.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from vllm.v1.worker.gpu.input_batch import InputBatch, get_num_sampled_and_rejected
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import gather_draft_sampled

from server.engine.speculation.outcome import owners

Settle = Callable[[InputBatch, torch.Tensor, torch.Tensor], None]
"""Told what a step with drafts sampled: its batch, tokens [B, K + 1] and how many of them are valid [B]."""


class MatchingSampler:
    """Samples the rows of a step with drafts, in the place of vLLM's rejection sampler."""

    def __init__(self, sampler: Sampler, num_speculative_tokens: int, settle: Settle) -> None:
        self._sampler = sampler
        self._width = num_speculative_tokens + 1
        self._settle = settle

    def __call__(
        self,
        logits: torch.Tensor,
        input_batch: InputBatch,
        draft_logits: torch.Tensor | None = None,
        invalid_drafts: torch.Tensor | None = None,
    ) -> SamplerOutput:
        """Sampled tokens [B, K + 1] of rows of logits [N, V]: accepted drafts, and the token after them."""
        output: SamplerOutput = self._sampler(logits, input_batch)
        drafts, _ = gather_draft_sampled(
            input_batch.input_ids,
            input_batch.positions,
            input_batch.logits_indices,
            input_batch.expanded_idx_mapping,
            input_batch.expanded_local_pos,
            self._sampler.req_states.prefill_len.gpu,
        )
        if invalid_drafts is not None:
            drafts = drafts.masked_fill(invalid_drafts, -1)
        tokens = output.sampled_token_ids.view(-1)
        sampled, num_sampled = compare(tokens, drafts, input_batch.cu_num_logits, self._width)
        num_sampled, num_rejected = get_num_sampled_and_rejected(
            num_sampled,
            input_batch.seq_lens,
            input_batch.cu_num_logits,
            input_batch.idx_mapping,
            self._sampler.req_states.prefill_len.gpu,
        )
        self._settle(input_batch, sampled, num_sampled)
        return replace(output, sampled_token_ids=sampled, num_sampled=num_sampled, num_rejected=num_rejected)


def compare(
    tokens: torch.Tensor, drafts: torch.Tensor, cu_num_logits: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampled tokens by request [B, width] int64, and how many of them are valid [B] int32.

    Args:
        tokens: [N] int64, what each row samples.
        drafts: [N], each row's input token; -1 is never accepted.
        cu_num_logits: [B + 1], where each request's rows begin and end; at least one, at most `width` each.
        width: columns of the result.
    """
    rows = torch.arange(len(tokens), device=tokens.device)
    owner = owners(cu_num_logits, len(tokens))
    local = rows - cu_num_logits[owner]
    accepted = torch.zeros_like(rows, dtype=torch.bool)
    # The next row of the same request has read the draft of this row's token.
    accepted[:-1] = (tokens[:-1] == drafts[1:]) & (owner[:-1] == owner[1:])
    requests = cu_num_logits.shape[0] - 1
    sampled = tokens.new_zeros(requests, width)
    sampled[owner, local] = tokens
    taken = torch.zeros(requests, width, dtype=torch.int32, device=tokens.device)
    taken[owner, local] = accepted.to(torch.int32)
    return sampled, 1 + taken.cumprod(1, dtype=torch.int32).sum(1, dtype=torch.int32)
