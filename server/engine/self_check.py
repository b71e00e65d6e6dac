"""Before anybody is let in: one real request is fused, and worked out again by the float64 reference.

What a request asks passes from the API through vLLM's engine into its workers, and what comes of it is a kernel's work
on this machine. A stale install, a plugin that was left out or a kernel that was compiled wrongly must end the start:
the large model alone would answer just as fluently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from fusion_kernels import Fused, Weighting, fuse_logits, reference
from fusion_kernels.batch import Batch, once_each
from server.engine.settings import FusionSettings, Pair
from server.errors import ServerError

if TYPE_CHECKING:
    from server.engine.client import FusionEngine

PROMPT = "1 + 1 ="
GENERATED = 4
# Of the largest logit: float32 resolves 1e-7, and every expert's term adds as much.
TOLERANCE = 1e-5
# Nats between a member's distributions at one token, generated and read as a prompt. Rounding in bfloat16 makes some
# thousandths; another token's states, or another member's, make several.
MOST_DRIFT = 0.3


class Step(NamedTuple):
    """A `compute_logits` call that fused, as the worker kept it."""

    batch: Batch
    fused: Fused


class Judgement(NamedTuple):
    """What a worker found in the steps that it kept."""

    tokens: list[list[int]]
    """The likeliest tokens of each row, by the reference: several only where rounding decides."""
    faults: list[str]


async def check_fusion(engine: FusionEngine, experts: Sequence[Pair]) -> None:
    """Generate with all `experts`, read the same tokens again as a prompt, and let every worker judge its steps.

    Steps that generate run by other code than those that read a prompt: on GPUs by the members' graphs.

    Raises:
        ServerError: the engine does not fuse as it should; says what it does instead.
    """
    prompt = engine.get_tokenizer().encode(PROMPT)
    await engine.on_workers("watch_fusion")
    tokens = await _generate(engine, experts, prompt, GENERATED)
    tokens += await _generate(engine, experts, prompt + tokens[:-1], 1)
    judged = [Judgement(*worker) for workers in await engine.on_workers("judge_fusion") for worker in workers]
    if experts:
        _compare(tokens, [each for each in judged if each.tokens])


async def _generate(engine: FusionEngine, experts: Sequence[Pair], prompt: list[int], number: int) -> list[int]:
    most = engine.model_config.max_logprobs
    params = SamplingParams(
        temperature=0,
        max_tokens=number,
        # As the playground asks for them: what compiles for them does so now.
        logprobs=None if most == 0 else 1,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    # Of unlike sizes and signs, so that experts which trade places show.
    alpha = tuple(round((-0.8) ** number, 3) for number in range(len(experts)))
    weighting = Weighting.STATIC if experts else Weighting.NONE
    FusionSettings(weighting, tuple(range(len(experts))), alpha, pairs=tuple(experts)).attach(params)
    tokens: list[int] = []
    async for output in engine.generate({"prompt_token_ids": prompt}, params, f"self-check-{number}"):
        tokens += output.outputs[0].token_ids
    return tokens


def _compare(tokens: Sequence[int], judged: Sequence[Judgement]) -> None:
    """`judged` has the workers of the engines that had requests, which may be two where there are several."""
    if not judged:
        raise ServerError(
            "a request for all experts was answered by the large model alone: its settings did not reach the engine's "
            "processes. Is the package installed as they see it (entry point 'logit_fusion' of 'vllm.general_plugins')?"
        )
    parts = [tokens, tokens[:GENERATED], tokens[GENERATED:]]
    for worker in judged:
        if worker.faults:
            raise ServerError("; ".join(worker.faults))
        sampled = next((part for part in parts if len(part) == len(worker.tokens)), tokens)
        if len(sampled) != len(worker.tokens) or any(
            t not in likely for t, likely in zip(sampled, worker.tokens, strict=True)
        ):
            raise ServerError(
                f"the engine sampled tokens {list(sampled)}, the fused logits' likeliest are {worker.tokens}"
            )


def judge(steps: Sequence[Step]) -> Judgement:
    """Compare what the kernel made of the steps' logits, by every weighting that fuses, with the reference.

    Where the last step read as a prompt what the one before it had generated, the members are compared with themselves.
    """
    faults, tokens = [], []
    for batch, fused in steps:
        on_host = _on_host(batch)
        want = reference.fuse(on_host)
        near = want.logits >= want.logits.amax(-1, keepdim=True) - 2 * _room(on_host)
        tokens += [row.nonzero().flatten().tolist() for row in near]
        faults += _faults("static", on_host, fused, want)
        for weighting in Weighting:
            if weighting.searches:
                kind, most = torch.full_like(batch.kind, weighting), torch.ones_like(batch.alpha_max)
                found = fuse_logits(*batch[:3], kind=kind, use=batch.use, alpha=batch.alpha, alpha_max=most)
                # Which weights are best is the objective's business, and may be a matter of rounding; what comes of
                # them is not.
                given = on_host._replace(alpha=found.alpha.cpu())
                faults += _faults(str(weighting), given, found, reference.fuse(given))
    if len(steps) == GENERATED + 1:
        faults += _drifts(_on_host(steps[-2].batch), _on_host(steps[-1].batch))
    return Judgement(tokens, faults)


def _drifts(generated: Batch, read: Batch) -> list[str]:
    """The members that say another thing of a token when they generate than when they read it as a prompt."""
    faults = []
    again = _named(read)
    for name, logits in _named(generated).items():
        drift = float(reference.kl(logits.double(), again[name].double()).max())
        # A member that is broken, or masks tokens, is no fault of the engine's.
        if drift > MOST_DRIFT and drift != float("inf"):
            faults.append(
                f"{name} is {drift:.3g} nats off while it generates from what it says of the same tokens as a prompt"
            )
    return faults


def _named(batch: Batch) -> dict[str, torch.Tensor]:
    """The members' logits by what they are; what all experts are compared with is the base."""
    named = {"the large model": batch.large}
    shared = len(batch.against) > 1 and all(other is batch.against[0] for other in batch.against)
    for t, (expert, against) in enumerate(zip(batch.experts, batch.against, strict=True)):
        named["the base" if shared else f"what expert {t} is compared with"] = against
        named[f"expert {t}"] = expert
    return named


def _on_host(batch: Batch) -> Batch:
    large, against, experts, *settings = batch
    against, experts = once_each(torch.Tensor.cpu, against), once_each(torch.Tensor.cpu, experts)
    return Batch(large.cpu(), against, experts, *(each.cpu() for each in settings))


def _faults(weighting: str, batch: Batch, fused: Fused, want: Fused) -> list[str]:
    if not torch.equal(fused.broken.cpu(), want.broken):
        return [f"{weighting}: members {fused.broken.tolist()} count as broken, not {want.broken.tolist()}"]
    found = fused.logits.cpu()
    same = (found == want.logits) | (found.isnan() & want.logits.isnan())
    off = float(torch.where(same, 0.0, (found - want.logits).abs()).max())
    room = float(_room(batch).max())
    # Not `off > room`, which NaN would pass.
    return [] if off <= room else [f"{weighting}: fused logits are off by {off:.3g}, at most {room:.3g} is rounding"]


def _room(batch: Batch) -> torch.Tensor:
    """[B, 1]: how far fused logits may be off by rounding."""
    finite = torch.cat([member.float() for member in batch.members], dim=1)
    size = torch.where(finite.isfinite(), finite, 0.0).abs().amax(1).clamp(min=1.0)
    return (TOLERANCE * size * (1.0 + batch.alpha.abs().sum(-1)))[:, None]
