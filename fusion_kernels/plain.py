"""The fusion in plain float32 torch, on any device and without host synchronisation on a GPU."""

import torch
from torch import Tensor

from fusion_kernels import joint, solver
from fusion_kernels.weighting import BASE, FIRST_EXPERT, GRID_POINTS, GRID_STEPS_PER_UNIT, Fused, Weighting


def fuse(
    large: Tensor, base: Tensor, experts: list[Tensor], kind: Tensor, use: Tensor, alpha: Tensor, alpha_max: Tensor
) -> Fused:
    """`fuse_logits` for all rows at once."""
    common = min(member.shape[1] for member in [large, base, *experts])
    whole = large.float()
    static, searched, alone = (
        kind == Weighting.STATIC,
        (kind == Weighting.KL)
        | (kind == Weighting.KL_GRID)
        | (kind == Weighting.KL_JOINT)
        | (kind == Weighting.KL_SAFE),
        kind == Weighting.ALONE,
    )
    use = use & (kind != Weighting.NONE)[:, None]
    first = use & (use.cumsum(1) == 1)
    bad_base = _broken(base[:, :common])
    bad_experts = torch.stack([_broken(expert[:, :common]) for expert in experts], dim=1)
    bad_alone = torch.stack([_broken(expert[:, : large.shape[1]]) for expert in experts], dim=1)
    needs_base = use.any(1) & ~alone
    bad_used = torch.where(alone[:, None], bad_alone & first, bad_experts & use)
    culprit = torch.where(bad_used.any(1), FIRST_EXPERT + bad_used.int().argmax(1), 0)
    culprit = torch.where(bad_base & needs_base, BASE, culprit)
    broken = torch.where(_broken(large) & ~alone, 0, culprit).to(torch.int8)
    fallback = broken > 0
    fused_rows = needs_base & ~fallback & ~_broken(large)

    # Rows that are not fused compute on zeros: no NaN can leak, and every row takes the same path.
    p = torch.where(fused_rows[:, None], whole[:, :common], 0.0)
    q = torch.where(fused_rows[:, None], base[:, :common].float(), 0.0)
    deltas, targets, entropies = [], [], []
    for t, expert in enumerate(experts):
        live = (fused_rows & use[:, t])[:, None]
        q_t = torch.where(live, expert[:, :common].float(), q)
        both = (q > -torch.inf) & (q_t > -torch.inf)
        delta = torch.where(both, q_t - q, 0.0)
        deltas.append(delta)
        expert_targets, entropy = _targets(q, q_t, delta, both)
        targets.append(expert_targets)
        entropies.append(entropy)
    counts = use.sum(1).clamp(min=1)[:, None]
    target = torch.stack(targets).sum(0) / counts * fused_rows[:, None]

    log_p = _log_softmax(p)
    chosen = torch.where((static & fused_rows)[:, None] & use, alpha, 0.0)
    if searched.device.type != "cpu" or bool(searched.any()):
        solved = _search(log_p, deltas, target, kind == Weighting.KL_GRID, use, alpha_max.clamp(min=0))
        safe = kind == Weighting.KL_SAFE
        if safe.device.type != "cpu" or bool(safe.any()):
            cautious = _search_safely(log_p, deltas, targets, entropies, use, alpha_max.clamp(min=0))
            solved = torch.where(safe[:, None], cautious, solved)
        together = kind == Weighting.KL_JOINT
        if together.device.type != "cpu" or bool(together.any()):
            solved = torch.where(
                together[:, None], _search_jointly(log_p, deltas, target, use, alpha_max, solved), solved
            )
        chosen = torch.where((searched & fused_rows)[:, None] & use, solved, chosen)

    moved = torch.zeros_like(p)
    head = whole[:, :common]
    for t, delta in enumerate(deltas):
        moved = moved + chosen[:, t, None] * delta
        head = head + chosen[:, t, None] * delta
    logits = torch.cat([torch.where(fused_rows[:, None], head, whole[:, :common]), whole[:, common:]], dim=1)
    kl_fused = _divergences(log_p, moved, torch.ones_like(alpha_max)) * fused_rows[:, None]

    alone_used = (alone & ~fallback)[:, None] & first
    for t, expert in enumerate(experts):
        logits = torch.where(alone_used[:, t, None], _resized(expert.float(), whole.shape[1]), logits)
    chosen = torch.where(alone_used, 1.0, chosen)
    return Fused(logits, chosen, target, kl_fused, broken)


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


def _targets(q: Tensor, q_t: Tensor, delta: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 2]: KL(Q_t || Q) and KL(Q || Q_t), and [B]: the entropy of Q_t; all over the tokens that neither masks."""
    log_q = _log_softmax(torch.where(both, q, -torch.inf))
    log_q_t = _log_softmax(torch.where(both, q_t, -torch.inf))
    ratio = torch.where(both, log_q_t - log_q, 0.0)
    q_t_mass = log_q_t.exp()
    targets = torch.stack([(q_t_mass * ratio).sum(1), -(log_q.exp() * ratio).sum(1)], dim=1).clamp(min=0)
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


def _search(
    log_p: Tensor, deltas: list[Tensor], target: Tensor, on_grid: Tensor, use: Tensor, alpha_max: Tensor
) -> Tensor:
    """[B, T]: the best single expert at its best weight, from the grid for rows `on_grid`, else exact."""
    chosen = torch.zeros_like(use, dtype=torch.float32)
    least = torch.full_like(alpha_max, torch.inf, dtype=torch.float64)
    empty = ~(log_p > -torch.inf).any(1, keepdim=True)
    log_p = torch.where(empty, 0.0, log_p)
    top = log_p.argmax(1, keepdim=True)
    for t, delta in enumerate(deltas):
        # f and g do not change with the offset of delta; around the top token's they suffer least from rounding.
        delta = torch.where(empty, 0.0, delta - delta.gather(1, top))

        def cumulants(x: Tensor, delta: Tensor = delta) -> Tensor:
            return _cumulants(log_p, delta, x)

        best = solver.solve(cumulants, target, torch.where(on_grid, 0.0, alpha_max))
        x, loss = best.x, best.loss
        if on_grid.device.type != "cpu" or bool(on_grid.any()):
            grid_x, grid_loss = _grid(cumulants, target, alpha_max)
            x, loss = torch.where(on_grid, grid_x, x), torch.where(on_grid, grid_loss, loss)
        better = use[:, t] & (loss < least)
        chosen = torch.where(better[:, None], 0.0, chosen)
        chosen[:, t] = torch.where(better, x.float(), chosen[:, t])
        least = torch.where(better, loss, least)
    return chosen


def _search_safely(
    log_p: Tensor, deltas: list[Tensor], targets: list[Tensor], entropies: list[Tensor], use: Tensor, alpha_max: Tensor
) -> Tensor:
    """[B, T]: every used expert's weight for its own targets, scaled as `reference.trust` says."""
    own = torch.stack(
        [
            _search(log_p, [delta], target, torch.zeros_like(use[:, 0]), use[:, t, None], alpha_max)[:, 0]
            for t, (delta, target) in enumerate(zip(deltas, targets, strict=True))
        ],
        dim=1,
    )
    kept = [target[:, 0] / (target[:, 0] + entropy) for target, entropy in zip(targets, entropies, strict=True)]
    return own * torch.stack(kept, dim=1).sqrt().nan_to_num(nan=0.0)


def _search_jointly(
    log_p: Tensor, deltas: list[Tensor], target: Tensor, use: Tensor, alpha_max: Tensor, start: Tensor
) -> Tensor:
    """[B, T]: all used experts' weights at once, from the best single expert's."""
    empty = ~(log_p > -torch.inf).any(1)[:, None]
    stacked = torch.stack(deltas, dim=1) * (use & ~empty)[..., None]
    return joint.solve(torch.where(empty, 0.0, log_p), stacked, target, alpha_max, start).float()


def _grid(cumulants: solver.Cumulants, target: Tensor, alpha_max: Tensor) -> tuple[Tensor, Tensor]:
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
