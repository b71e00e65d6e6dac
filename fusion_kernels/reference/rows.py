"""The oracle: every row in float64, one after another, by the equations of `reference.equations`."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fusion_kernels.batch import Batch, Fused, broken_against, broken_expert
from fusion_kernels.reference.equations import divergences, kl, minimise, search_grid, trust
from fusion_kernels.search import LEAD, LEAD_SHARE
from fusion_kernels.weighting import Weighting

Search = Callable[[Tensor, Tensor, Tensor, float], tuple[float, float]]


class Row:
    """One row in float64, cut to the common ids: the large logits, each used expert's delta, and the targets.

    `against` holds what each of the `experts` is compared with.
    """

    def __init__(self, large: Tensor, against: list[Tensor], experts: list[Tensor]) -> None:
        common = min(len(member) for member in [large, *against, *experts])
        self.large = large[:common].double()
        self.deltas: list[Tensor] = []
        targets: list[Tensor] = []
        entropies: list[Tensor] = []
        for against_t, expert in zip(against, experts, strict=True):
            r_t, q_t = against_t[:common].double(), expert[:common].double()
            both = (r_t > -torch.inf) & (q_t > -torch.inf)
            self.deltas.append(torch.where(both, q_t - r_t, 0.0))
            r_t, q_t = r_t[both], q_t[both]
            targets.append(torch.stack([kl(q_t, r_t), kl(r_t, q_t)]) if len(q_t) else self.large.new_zeros(2))
            log_q_t = q_t.log_softmax(-1)
            entropies.append(-(log_q_t.exp() * log_q_t.clamp(min=-1e9)).sum())
        self.targets = torch.stack(targets).clamp(min=0) if targets else self.large.new_zeros(0, 2)
        self.entropies = torch.stack(entropies) if targets else self.large.new_zeros(0)
        self.target = torch.stack(targets).mean(0) if targets else self.large.new_zeros(2)

    def at(self, alpha: list[float]) -> Tensor:
        """[2]: f and g with every expert at its weight in `alpha`."""
        total = sum((a * d for a, d in zip(alpha, self.deltas, strict=True)), torch.zeros_like(self.large))
        return divergences(self.large, total, torch.ones(1, dtype=torch.float64))[0]

    def solve(self, weighting: Weighting, alpha_max: float) -> list[float]:
        """The weights of a weighting that searches.

        `KL` and `KL_GRID` are the paper's: one expert at a time, the others at 0; the first of the best wins, where one
        that leads by less than `LEAD_SHARE` and `LEAD` is no better. `KL_SAFE` solves each expert for its own targets,
        and scales what it finds by `trust`.

        Raises:
            ValueError: the weighting searches for nothing.
        """
        if weighting == Weighting.KL:
            return self._best_expert(minimise, alpha_max)
        if weighting == Weighting.KL_GRID:
            return self._best_expert(search_grid, alpha_max)
        if weighting == Weighting.KL_SAFE:
            kept = trust(self.targets, self.entropies).tolist()
            own = zip(self.deltas, self.targets, kept, strict=True)
            return [minimise(self.large, delta, target, alpha_max)[0] * trusted for delta, target, trusted in own]
        raise ValueError(f"no search is written down for {weighting!r}")

    def _best_expert(self, search: Search, alpha_max: float) -> list[float]:
        best, best_loss = [0.0] * len(self.deltas), math.inf
        for t, delta in enumerate(self.deltas):
            alpha, loss = search(self.large, delta, self.target, alpha_max)
            if loss < best_loss * (1 - LEAD_SHARE) - LEAD:
                best, best_loss = [0.0] * len(self.deltas), loss
                best[t] = alpha
        return best


def broken(member: Tensor) -> bool:
    """Whether a member's logits hold NaN or +inf; -inf is a masked token and legal."""
    return bool((member.isnan() | (member == torch.inf)).any())


def fuse(batch: Batch) -> Fused:
    """`fuse_logits` row by row; the logits are rounded to float32 at the end only."""
    out = Fused(
        logits=batch.large.float().clone(),
        alpha=torch.zeros_like(batch.alpha),
        kl_target=batch.alpha.new_zeros(len(batch.large), 2),
        kl_fused=batch.alpha.new_zeros(len(batch.large), 2),
        broken=torch.zeros_like(batch.kind),
    )
    for row in range(len(batch.large)):
        weighting, used = Weighting(int(batch.kind[row])), batch.use[row].nonzero().flatten().tolist()
        if weighting == Weighting.NONE or not used:
            continue
        if weighting == Weighting.ALONE:
            _copy_expert(batch, row, used[0], out)
        elif not broken(batch.large[row]):
            _fuse_row(batch, row, weighting, used, out)
    return out


def _copy_expert(batch: Batch, row: int, t: int, out: Fused) -> None:
    length = min(batch.experts[t].shape[1], batch.large.shape[1])
    expert = batch.experts[t][row, :length].float()
    if broken(expert):
        out.broken[row] = broken_expert(t)
        return
    out.logits[row] = -torch.inf
    out.logits[row, :length] = expert
    out.alpha[row, t] = 1.0


def _fuse_row(batch: Batch, row: int, weighting: Weighting, used: list[int], out: Fused) -> None:
    common = batch.common
    against = [batch.against[t][row, :common] for t in used]
    experts = [batch.experts[t][row, :common] for t in used]
    for t, against_t, expert in zip(used, against, experts, strict=True):
        if broken(against_t) or broken(expert):
            out.broken[row] = broken_against(t) if broken(against_t) else broken_expert(t)
            return
    problem = Row(batch.large[row, :common], against, experts)
    if weighting == Weighting.STATIC:
        weights = [float(batch.alpha[row, t]) for t in used]
    else:
        weights = problem.solve(weighting, float(batch.alpha_max[row]))
    fused = batch.large[row].double()
    for t, weight, delta in zip(used, weights, problem.deltas, strict=True):
        fused[:common] += weight * delta
        out.alpha[row, t] = weight
    out.logits[row] = fused.float()
    out.kl_target[row] = problem.target.float()
    out.kl_fused[row] = problem.at(weights).float()
