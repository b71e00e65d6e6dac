"""The fusion in plain float32 torch, on any device and without host synchronisation on a GPU."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fusion_kernels.batch import Batch, Fused, broken_against, broken_expert, once_each
from fusion_kernels.search import GRID_POINTS, GRID_STEPS_PER_UNIT, LEAD, LEAD_SHARE
from fusion_kernels.torch.search import Cumulants, solve, worth
from fusion_kernels.weighting import Weighting


class Plan(NamedTuple):
    """Which rows do what."""

    use: Tensor
    """[B, T] bool: the experts that have a part."""
    alone: Tensor
    """[B, T] bool: the expert whose own logits the row is."""
    fused: Tensor
    """[B] bool: the row gets deltas."""
    broken: Tensor
    """[B] int8, as in `Fused`."""


class Problem(NamedTuple):
    """What the search sees of B rows, over the V_c common ids; rows that are not fused are all zeros."""

    log_p: Tensor
    """[B, V_c]: log-softmax of large."""
    deltas: list[Tensor]
    """T tensors [B, V_c]."""
    targets: list[Tensor]
    """T tensors [B, 2]: a and b of each expert."""
    target: Tensor
    """[B, 2]: their means over the row's experts."""
    entropies: list[Tensor]
    """T tensors [B]: H(Q_t) in nats."""


def fuse(batch: Batch) -> Fused:
    """`fuse_logits` for all rows at once."""
    plan = _plan(batch)
    problem = _problem(batch, plan)
    chosen = _weights(batch, plan, problem)
    whole, common = batch.large.float(), batch.common
    moved, head = torch.zeros_like(problem.log_p), whole[:, :common]
    for t, delta in enumerate(problem.deltas):
        moved = moved + chosen[:, t, None] * delta
        head = head + chosen[:, t, None] * delta
    logits = torch.cat([torch.where(plan.fused[:, None], head, whole[:, :common]), whole[:, common:]], dim=1)
    kl_fused = _divergences(problem.log_p, moved, torch.ones_like(batch.alpha_max)) * plan.fused[:, None]
    for t, expert in enumerate(batch.experts):
        logits = torch.where(plan.alone[:, t, None], _resized(expert.float(), whole.shape[1]), logits)
    return Fused(logits, torch.where(plan.alone, 1.0, chosen), problem.target, kl_fused, plan.broken)


def _plan(batch: Batch) -> Plan:
    common = batch.common
    alone = batch.kind == Weighting.ALONE
    use = batch.use & (batch.kind != Weighting.NONE)[:, None]
    first = use & (use.cumsum(1) == 1)
    fuses = use.any(1) & ~alone
    bad_large = _broken(batch.large)
    bad_against = torch.stack(once_each(lambda against_t: _broken(against_t[:, :common]), batch.against), dim=1)
    bad_experts = torch.stack([_broken(expert[:, :common]) for expert in batch.experts], dim=1)
    bad_alone = torch.stack([_broken(expert[:, : batch.large.shape[1]]) for expert in batch.experts], dim=1)
    bad_experts = torch.where(alone[:, None], bad_alone & first, bad_experts & use)
    # In the order in which the first one counts.
    bad = torch.stack([bad_against & use & fuses[:, None], bad_experts], dim=2).flatten(1)
    where = bad.int().argmax(1)
    t, is_expert = where // 2, where % 2 == 1
    culprit = torch.where(is_expert, broken_expert(t), broken_against(t)) * bad.any(1)
    broken = torch.where(bad_large & ~alone, 0, culprit).to(torch.int8)
    sound = broken == 0
    return Plan(use, (alone & sound)[:, None] & first, fuses & sound & ~bad_large, broken)


def _problem(batch: Batch, plan: Plan) -> Problem:
    # Rows that are not fused compute on zeros: no NaN can leak, and every row takes the same path.
    common, fused = batch.common, plan.fused[:, None]
    p = torch.where(fused, batch.large[:, :common].float(), 0.0)
    against = once_each(lambda against_t: against_t[:, :common].float(), batch.against)
    deltas, targets, entropies = [], [], []
    for t, (against_t, expert) in enumerate(zip(against, batch.experts, strict=True)):
        live = fused & plan.use[:, t, None]
        r_t, q_t = torch.where(live, against_t, 0.0), torch.where(live, expert[:, :common].float(), 0.0)
        both = (r_t > -torch.inf) & (q_t > -torch.inf)
        delta = torch.where(both, q_t - r_t, 0.0)
        deltas.append(delta)
        expert_targets, entropy = _targets(r_t, q_t, both)
        targets.append(expert_targets)
        entropies.append(entropy)
    target = torch.stack(targets).sum(0) / plan.use.sum(1).clamp(min=1)[:, None] * fused
    return Problem(_log_softmax(p), deltas, targets, target, entropies)


def _weights(batch: Batch, plan: Plan, problem: Problem) -> Tensor:
    """[B, T]: the weights of fused rows; 0 in others, and for experts without a part."""
    fused = plan.fused[:, None] & plan.use
    chosen = torch.where((batch.kind == Weighting.STATIC)[:, None] & fused, batch.alpha, 0.0)
    for weighting, search in SEARCHES.items():
        rows = batch.kind == weighting
        if worth(rows):
            found = search(problem, plan.use, torch.where(rows, batch.alpha_max.clamp(min=0), 0.0))
            chosen = torch.where(rows[:, None] & fused, found, chosen)
    return chosen


def _broken(member: Tensor) -> Tensor:
    """[B] bool: NaN or +inf among a row's logits."""
    return (member.isnan() | (member == torch.inf)).any(1)


def _resized(expert: Tensor, length: int) -> Tensor:
    """[B, length]: the expert's logits cut, or continued by -inf."""
    cut = expert[:, :length]
    return torch.nn.functional.pad(cut, (0, length - cut.shape[1]), value=-torch.inf)


def _log_softmax(logits: Tensor) -> Tensor:
    """log_softmax over ids; a row without any unmasked token is -inf everywhere instead of NaN."""
    return torch.where(logits > -torch.inf, logits.log_softmax(1), -torch.inf)


def _targets(r_t: Tensor, q_t: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 2]: KL(Q_t || R_t), KL(R_t || Q_t), and [B]: the entropy of Q_t; over the tokens that neither masks."""
    log_r_t = _log_softmax(torch.where(both, r_t, -torch.inf))
    log_q_t = _log_softmax(torch.where(both, q_t, -torch.inf))
    ratio = torch.where(both, log_q_t - log_r_t, 0.0)
    q_t_mass = log_q_t.exp()
    targets = torch.stack([(q_t_mass * ratio).sum(1), -(log_r_t.exp() * ratio).sum(1)], dim=1).clamp(min=0)
    return targets, -torch.where(both, q_t_mass * log_q_t, 0.0).sum(1)


def _divergences(log_p: Tensor, delta: Tensor, x: Tensor) -> Tensor:
    """[B, 2]: f and g at the weight x [B] along delta [B, V_c]."""
    log_fused = _log_softmax(log_p + x[:, None] * delta)
    ratio = torch.where(log_p > -torch.inf, log_fused - log_p, 0.0)
    return torch.stack([(log_fused.exp() * ratio).sum(1), -(log_p.exp() * ratio).sum(1)], dim=1).clamp(min=0)


def _cumulants(log_p: Tensor, delta: Tensor, x: Tensor) -> Tensor:
    """[B, 4]: A and its first three derivatives at x [B]; A(0) = 0 for a normalised log_p [B, V_c]."""
    tilted = log_p + x[:, None] * delta
    value = tilted.logsumexp(1, keepdim=True)
    fused = (tilted - value).exp()
    mean = (fused * delta).sum(1, keepdim=True)
    off = delta - mean
    squared = fused * off * off
    return torch.cat([value, mean, squared.sum(1, keepdim=True), (squared * off).sum(1, keepdim=True)], dim=1)


def _search(problem: Problem, use: Tensor, alpha_max: Tensor) -> Tensor:
    """[B, T]: the best single expert at its best weight."""
    return _best_expert(problem, use, alpha_max, _solve)


def _search_on_grid(problem: Problem, use: Tensor, alpha_max: Tensor) -> Tensor:
    """[B, T]: the best single expert at its best weight on the grid."""
    return _best_expert(problem, use, alpha_max, _grid)


def _search_safely(problem: Problem, use: Tensor, alpha_max: Tensor) -> Tensor:
    """[B, T]: every used expert's weight for its own targets, scaled as `reference.trust` says."""
    found = []
    for t, (delta, target, entropy) in enumerate(zip(problem.deltas, problem.targets, problem.entropies, strict=True)):
        own = problem._replace(deltas=[delta], target=target)
        kept = (target[:, 0] / (target[:, 0] + entropy)).sqrt().nan_to_num(nan=0.0)
        found.append(_search(own, use[:, t, None], alpha_max)[:, 0] * kept)
    return torch.stack(found, dim=1)


SEARCHES: dict[Weighting, Callable[[Problem, Tensor, Tensor], Tensor]] = {
    Weighting.KL: _search,
    Weighting.KL_GRID: _search_on_grid,
    Weighting.KL_SAFE: _search_safely,
}
"""The searching weightings: from a problem, the experts used [B, T] and the largest weights [B], 0 in others' rows."""


def _best_expert(
    problem: Problem,
    use: Tensor,
    alpha_max: Tensor,
    search: Callable[[Cumulants, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    """[B, T]: the weight that `search` finds for the expert with the smallest objective, 0 for the others."""
    chosen = torch.zeros_like(use, dtype=torch.float32)
    least = torch.full_like(alpha_max, torch.inf, dtype=torch.float64)
    empty = ~(problem.log_p > -torch.inf).any(1, keepdim=True)
    log_p = torch.where(empty, 0.0, problem.log_p)
    top = log_p.argmax(1, keepdim=True)
    for t, delta in enumerate(problem.deltas):
        # f and g do not change with the offset of delta; around the top token's they suffer least from rounding.
        delta = torch.where(empty, 0.0, delta - delta.gather(1, top))

        def cumulants(x: Tensor, delta: Tensor = delta) -> Tensor:
            return _cumulants(log_p, delta, x)

        x, loss = search(cumulants, problem.target, alpha_max)
        better = use[:, t] & (loss < least * (1 - LEAD_SHARE) - LEAD)
        chosen = torch.where(better[:, None], 0.0, chosen)
        chosen[:, t] = torch.where(better, x.float(), chosen[:, t])
        least = torch.where(better, loss, least)
    return chosen


def _solve(cumulants: Cumulants, target: Tensor, alpha_max: Tensor) -> tuple[Tensor, Tensor]:
    """([B], [B]): the best weights and their objective."""
    best = solve(cumulants, target, alpha_max)
    return best.x, best.loss


def _grid(cumulants: Cumulants, target: Tensor, alpha_max: Tensor) -> tuple[Tensor, Tensor]:
    """([B], [B]): the first of Algorithm 1's candidates with the smallest objective, and that objective."""
    a, b = target.double().unbind(1)
    start, mean = cumulants(torch.zeros_like(alpha_max)).double()[:, :2].unbind(1)
    best, least = torch.zeros_like(a), a.square() + b.square()
    for k in range(1, GRID_POINTS):
        x = torch.full_like(alpha_max, k / GRID_STEPS_PER_UNIT)
        value, slope = cumulants(x).double()[:, :2].unbind(1)
        f, g = (x * slope - value + start).clamp(min=0), (value - start - x * mean).clamp(min=0)
        loss = (f - a).square() + (g - b).square()
        lower = (x <= alpha_max) & (loss < least)
        best, least = torch.where(lower, x.double(), best), torch.where(lower, loss, least)
    return best, least
