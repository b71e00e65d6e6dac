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
from fusion_kernels.batch import Batch
from server.engine.settings import FusionSettings
from server.errors import ServerError

if TYPE_CHECKING:
    from server.engine.client import FusionEngine

PROMPT = "1 + 1 ="
# Of the largest logit: float32 resolves 1e-7, and every expert's term adds as much.
TOLERANCE = 1e-5


class Step(NamedTuple):
    """A `compute_logits` call that fused, as the worker kept it."""

    batch: Batch
    fused: Fused


class Judgement(NamedTuple):
    """What a worker found in the steps that it kept."""

    tokens: list[int]
    """The likeliest token of each row, by the reference."""
    faults: list[str]


async def check_fusion(engine: FusionEngine, experts: int) -> None:
    """Generate one token with all `experts`, and let every worker compare its step with the reference.

    Raises:
        ServerError: the engine does not fuse as it should; says what it does instead.
    """
    most = engine.model_config.max_logprobs
    params = SamplingParams(
        temperature=0,
        max_tokens=1,
        # As the playground asks for them: what compiles for them does so now.
        logprobs=None if most == 0 else 1,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    # Of unlike sizes and signs, so that experts which trade places show.
    alpha = tuple(round((-0.8) ** number, 3) for number in range(experts))
    weighting = Weighting.STATIC if experts else Weighting.NONE
    FusionSettings(weighting, tuple(range(experts)), alpha).attach(params)
    await engine.on_workers("watch_fusion")
    tokens: list[int] = []
    prompt = {"prompt_token_ids": engine.get_tokenizer().encode(PROMPT)}
    async for output in engine.generate(prompt, params, "self-check"):
        tokens += output.outputs[0].token_ids
    judged = [Judgement(*worker) for workers in await engine.on_workers("judge_fusion") for worker in workers]
    if experts:
        _compare(tokens, [each for each in judged if each.tokens])


def _compare(tokens: Sequence[int], judged: Sequence[Judgement]) -> None:
    """`judged` has the workers of the engine that had the request."""
    if not judged:
        raise ServerError(
            "a request for all experts was answered by the large model alone: its settings did not reach the engine's "
            "processes. Is the package installed as they see it (entry point 'logit_fusion' of 'vllm.general_plugins')?"
        )
    for worker in judged:
        if worker.faults:
            raise ServerError("; ".join(worker.faults))
        if list(tokens) != worker.tokens:
            raise ServerError(
                f"the engine sampled token {list(tokens)}, the fused logits' likeliest is {worker.tokens}"
            )


def judge(steps: Sequence[Step]) -> Judgement:
    """Compare what the kernel made of the steps' logits, by every weighting that fuses, with the reference."""
    faults, tokens = [], []
    for batch, fused in steps:
        on_host = _on_host(batch)
        want = reference.fuse(on_host)
        tokens += want.logits.argmax(-1).tolist()
        faults += _faults("static", on_host, fused, want)
        for weighting in Weighting:
            if weighting.searches:
                kind, most = torch.full_like(batch.kind, weighting), torch.ones_like(batch.alpha_max)
                found = fuse_logits(*batch[:3], kind=kind, use=batch.use, alpha=batch.alpha, alpha_max=most)
                # Which weights are best is the objective's business, and may be a matter of rounding; what comes of
                # them is not.
                given = on_host._replace(alpha=found.alpha.cpu())
                faults += _faults(str(weighting), given, found, reference.fuse(given))
    return Judgement(tokens, faults)


def _on_host(batch: Batch) -> Batch:
    large, base, experts, *settings = batch
    return Batch(large.cpu(), base.cpu(), [expert.cpu() for expert in experts], *(each.cpu() for each in settings))


def _faults(weighting: str, batch: Batch, fused: Fused, want: Fused) -> list[str]:
    if not torch.equal(fused.broken.cpu(), want.broken):
        return [f"{weighting}: members {fused.broken.tolist()} count as broken, not {want.broken.tolist()}"]
    found = fused.logits.cpu()
    same = (found == want.logits) | (found.isnan() & want.logits.isnan())
    off = float(torch.where(same, 0.0, (found - want.logits).abs()).max())
    finite = torch.cat([member.float().flatten() for member in batch.members])
    size = float(torch.where(finite.isfinite(), finite, 0.0).abs().max())
    room = TOLERANCE * max(1.0, size) * (1.0 + float(batch.alpha.abs().sum(-1).max()))
    # Not `off > room`, which NaN would pass.
    return [] if off <= room else [f"{weighting}: fused logits are off by {off:.3g}, at most {room:.3g} is rounding"]
