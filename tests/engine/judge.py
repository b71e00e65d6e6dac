"""Compares an answer with the Hugging Face reference: each token given those before it, one fusion per position.

A token that is the reference's own choice at every position, given the tokens before it, is by induction the
reference's whole answer. Engine and reference sum in another order, so two tokens whose fused logits nearly agree may
trade places. Such a tie is accepted only when raising the engine's token by `TIE` in the reference makes it the
reference's choice too, and it is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from fusion_kernels import Fused
from tests.engine.driver import Answer, Case
from tests.hf_loop import Settings
from tests.noise import draw

TIE = 1e-4
# The kernel finds `kl` and `kl-safe` weights in float32, where their objective may be flat: they differ by up to a few
# 1e-4 from the float64 reference's, and a token's logprob by that times its delta, which grows as it is less likely.
SEARCHED_ATOL, SEARCHED_RTOL = 2e-3, 1e-4
OTHER_ATOL = 1e-4


@dataclass
class Verdict:
    """How many tokens were compared, and how many of them were ties."""

    tokens: int = 0
    ties: int = 0

    def __iadd__(self, other: Verdict) -> Verdict:
        self.tokens += other.tokens
        self.ties += other.ties
        return self


class Oracle(Protocol):
    """What says how logits are fused."""

    def along(self, prompt: Sequence[int], generated: Sequence[int], settings: Settings) -> Fused:
        """The fusion from which each of the `generated` tokens was drawn, one row a token."""

    def fuse(self, token_ids: Sequence[int], settings: Settings, positions: slice) -> Fused:
        """The fusion at `positions` of a text that all members read."""


def judge(oracle: Oracle, case: Case, answer: Answer) -> Verdict:
    """Check every token, logprob and trace of an answer.

    Raises:
        AssertionError: one of them is not the reference's.
    """
    verdict = Verdict()
    for choice, tokens in enumerate(answer.tokens):
        assert tokens, "no token came back"
        fused = oracle.along(case.prompt, tokens, case.settings)
        seed = case.params.get("seed", 0) + choice
        for position, token in enumerate(tokens):
            logits = fused.logits[position]
            place = len(case.prompt) + position - 1
            if choose(logits, case, seed, place) != token:
                raised = logits.clone()
                raised[token] += TIE
                assert choose(raised, case, seed, place) == token, (
                    f"token {position} of choice {choice} is {token}, "
                    f"the reference's is {choose(logits, case, seed, place)}; "
                    f"its logit lies {float(logits.max() - logits[token]):.2e} under the highest: {case}"
                )
                verdict.ties += 1
            verdict.tokens += 1
        if answer.logprobs[choice]:
            expected = fused.logits.log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)]
            _same_logprobs(answer.logprobs[choice], expected, case)
        if case.trace:
            _check_trace(case, answer, choice, fused)
    if answer.prompt_logprobs:
        _check_prompt_logprobs(oracle, case, answer)
    return verdict


def choose(logits: torch.Tensor, case: Case, seed: int, place: int) -> int:
    """The token that vLLM's sampler takes from these logits [V], which follow the token at `place`."""
    if case.greedy:
        return int(logits.argmax())
    params = case.params
    k = torch.tensor([params["top_k"] or len(logits)])
    p = torch.tensor([params["top_p"]])
    return draw(apply_top_k_top_p((logits.float() / params["temperature"])[None], k, p)[0], seed, place)


def _same_logprobs(found: list[float], expected: torch.Tensor, case: Case) -> None:
    searched = case.settings.weighting in ("kl", "kl-safe")
    atol, rtol = (SEARCHED_ATOL, SEARCHED_RTOL) if searched else (OTHER_ATOL, 0.0)
    torch.testing.assert_close(torch.tensor(found), expected, atol=atol, rtol=rtol)


def _check_trace(case: Case, answer: Answer, choice: int, fused: Fused) -> None:
    trace = answer.traces[choice]
    assert len(trace) == len(answer.tokens[choice])
    if not case.settings.experts:
        assert not any(weight for t in trace for weight in t.alpha)
    else:
        torch.testing.assert_close(torch.tensor([t.alpha for t in trace]), fused.alpha, atol=2e-3, rtol=0)
    torch.testing.assert_close(torch.tensor([t.kl_target for t in trace]), fused.kl_target, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(torch.tensor([t.kl_fused for t in trace]), fused.kl_fused, atol=3e-3, rtol=3e-3)
    assert not any(t.fallback for t in trace)


def _check_prompt_logprobs(oracle: Oracle, case: Case, answer: Answer) -> None:
    # The reference takes its time over each `kl` row: a sample of the positions will do there.
    step = 8 if case.settings.weighting == "kl" else 1
    reference = oracle.fuse(case.prompt, case.settings, slice(0, -1, step)).logits.log_softmax(-1)
    following = torch.tensor(case.prompt[1:][::step])
    expected = reference[torch.arange(len(following)), following]
    _same_logprobs(answer.prompt_logprobs[::step], expected, case)
