"""The oracle: every row in float64, written to be read beside the paper (arXiv 2406.15480, eq. 4 and 6, Algorithm 1).

Names follow the paper: P, Q, Q_t are the distributions of the large model, the base and expert t over the common ids.
"""

import math

import torch
from torch import Tensor

from fusion_kernels import joint
from fusion_kernels.weighting import BASE, FIRST_EXPERT, GRID_POINTS, GRID_STEPS_PER_UNIT, Fused, Weighting

# `minimise` stops when no cell can hold an objective lower than the best by more than this share of it.
CERTAIN = 1e-5
SPLIT = 8
MAX_LEVELS = 24
MAX_CELLS = 256


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats for logits [n] on one support."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def divergences(large: Tensor, delta: Tensor, weights: Tensor) -> Tensor:
    """f = KL(fused || P) and g = KL(P || fused) at each of n weights along one delta.

    Args:
        large: [V_c] float64 logits; the tokens that it masks are left out.
        delta: [V_c] float64.
        weights: [n] float64.

    Returns:
        [n, 2].
    """
    support = large > -torch.inf
    log_p, delta = large[support].log_softmax(-1), delta[support]
    if log_p.numel() == 0:
        return weights.new_zeros(len(weights), 2)
    rows = []
    for start in range(0, len(weights), 64):
        log_fused = (log_p + weights[start : start + 64, None] * delta).log_softmax(-1)
        ratio = log_fused - log_p
        rows.append(torch.stack([(log_fused.exp() * ratio).sum(-1), -(log_p.exp() * ratio).sum(-1)], dim=-1))
    return torch.cat(rows)


def trust(target: Tensor, entropy: Tensor) -> Tensor:
    """[T]: how much of its weight each of T experts keeps under `KL_SAFE`, sqrt(a / (a + H(Q_t))), a = KL(Q_t || Q).

    a + H(Q_t) = -sum Q_t log Q is the base's cross-entropy on the expert, so under the root is the share of it that
    fine-tuning accounts for, as R^2 is the share of a variance that a model explains; the root is to it what the
    correlation is to R^2. Near 1 where the expert learned something and is sure of it, near 0 where it says what the
    base says, or does not know.

    Args:
        target: [T, 2] float64, a and b of each expert.
        entropy: [T] float64, H(Q_t) in nats.
    """
    a = target[:, 0]
    return torch.where(a > 0, (a / (a + entropy)).sqrt(), 0.0)


def objective(found: Tensor, target: Tensor) -> Tensor:
    """L = (f - mean a)^2 + (g - mean b)^2: the paper's sum over experts, divided by T and without its constant."""
    return (found - target).square().sum(-1)


def grid(alpha_max: float) -> Tensor:
    """The candidates of Algorithm 1, as the float32 values that are reported, up to alpha_max."""
    points = (torch.arange(GRID_POINTS, dtype=torch.float64) / GRID_STEPS_PER_UNIT).float().double()
    return points[points <= max(alpha_max, 0.0)]


def search_grid(large: Tensor, delta: Tensor, target: Tensor, alpha_max: float) -> tuple[float, float]:
    """(alpha, L) of the first smallest objective on the grid."""
    candidates = grid(alpha_max)
    losses = objective(divergences(large, delta, candidates), target)
    best = int(losses.argmin())
    return float(candidates[best]), float(losses[best])


def minimise(large: Tensor, delta: Tensor, target: Tensor, alpha_max: float) -> tuple[float, float]:
    """(alpha, L) of the true minimum over [0, alpha_max]: a dense scan, then every cell that may hold less is split.

    f and g rise with alpha, so in the cell [x, y] they stay in the box [f(x), f(y)] x [g(x), g(y)], and the distance of
    the targets from that box bounds L from below. Hence the result is certain, also where L has several minima.
    """
    points = torch.linspace(0.0, max(alpha_max, 0.0), 257, dtype=torch.float64)
    found = divergences(large, delta, points)
    losses = objective(found, target)
    best = int(losses.argmin())
    alpha, loss = float(points[best]), float(losses[best])
    left, right, low, high = points[:-1], points[1:], found[:-1], found[1:]
    for _ in range(MAX_LEVELS):
        outside = (low - target).clamp(min=0) + (target - high).clamp(min=0)
        bound = outside.square().sum(-1)
        alive = (bound < loss * (1 - CERTAIN) - 1e-14).nonzero().flatten()
        if len(alive) == 0:
            break
        alive = alive[bound[alive].argsort()[:MAX_CELLS]]
        inner = torch.linspace(0, 1, SPLIT + 1, dtype=torch.float64)
        points = left[alive, None] + (right - left)[alive, None] * inner
        found = divergences(large, delta, points.flatten()).view(-1, SPLIT + 1, 2)
        losses = objective(found, target)
        best = int(losses.argmin())
        if float(losses.flatten()[best]) < loss:
            alpha, loss = float(points.flatten()[best]), float(losses.flatten()[best])
        left, right = points[:, :-1].flatten(), points[:, 1:].flatten()
        low, high = found[:, :-1].reshape(-1, 2), found[:, 1:].reshape(-1, 2)
    return alpha, loss


class Row:
    """One row in float64, cut to the common ids: the large logits, each used expert's delta, and the targets."""

    def __init__(self, large: Tensor, base: Tensor, experts: list[Tensor]) -> None:
        common = min(len(member) for member in [large, base, *experts])
        self.large = large[:common].double()
        self.deltas: list[Tensor] = []
        targets: list[Tensor] = []
        entropies: list[Tensor] = []
        for expert in experts:
            q, q_t = base[:common].double(), expert[:common].double()
            both = (q > -torch.inf) & (q_t > -torch.inf)
            self.deltas.append(torch.where(both, q_t - q, 0.0))
            q, q_t = q[both], q_t[both]
            targets.append(torch.stack([kl(q_t, q), kl(q, q_t)]) if len(q) else self.large.new_zeros(2))
            log_q_t = q_t.log_softmax(-1)
            entropies.append(-(log_q_t.exp() * log_q_t.clamp(min=-1e9)).sum())
        self.targets = torch.stack(targets).clamp(min=0) if targets else self.large.new_zeros(0, 2)
        self.entropies = torch.stack(entropies) if targets else self.large.new_zeros(0)
        self.target = torch.stack(targets).mean(0) if targets else self.large.new_zeros(2)

    def at(self, alpha: list[float]) -> Tensor:
        """[2]: f and g with every expert at its weight in `alpha`."""
        total = sum((a * d for a, d in zip(alpha, self.deltas, strict=True)), torch.zeros_like(self.large))
        return divergences(self.large, total, torch.ones(1, dtype=torch.float64))[0]

    def solve(self, kind: Weighting, alpha_max: float) -> list[float]:
        """The weights of the paper's search: one expert at a time, the others at 0; the first of the best wins.

        `KL_JOINT` goes on from there over all weights at once. `KL_SAFE` solves each expert for its own targets, and
        scales what it finds by `trust`.
        """
        if kind == Weighting.KL_SAFE:
            own = [
                minimise(self.large, delta, target, alpha_max)[0]
                for delta, target in zip(self.deltas, self.targets, strict=True)
            ]
            return [alpha * float(kept) for alpha, kept in zip(own, trust(self.targets, self.entropies), strict=True)]
        search = search_grid if kind == Weighting.KL_GRID else minimise
        best, best_loss = [0.0] * len(self.deltas), math.inf
        for t, delta in enumerate(self.deltas):
            alpha, loss = search(self.large, delta, self.target, alpha_max)
            if loss < best_loss:
                best, best_loss = [0.0] * len(self.deltas), loss
                best[t] = alpha
        if kind != Weighting.KL_JOINT or best_loss == math.inf:
            return best
        log_p, start = self.large.log_softmax(-1)[None], torch.tensor([best], dtype=torch.float64)
        limit = torch.tensor([alpha_max], dtype=torch.float64)
        together = joint.solve(log_p, torch.stack(self.deltas)[None], self.target[None], limit, start)
        return [float(a) for a in together[0]]


def broken(member: Tensor) -> bool:
    """Whether a member's logits hold NaN or +inf; -inf is a masked token and legal."""
    return bool((member.isnan() | (member == torch.inf)).any())


def fuse(
    large: Tensor, base: Tensor, experts: list[Tensor], kind: Tensor, use: Tensor, alpha: Tensor, alpha_max: Tensor
) -> Fused:
    """`fuse_logits` row by row; the logits are rounded to float32 at the end only."""
    out = Fused(
        logits=large.float().clone(),
        alpha=torch.zeros_like(alpha),
        kl_target=alpha.new_zeros(len(large), 2),
        kl_fused=alpha.new_zeros(len(large), 2),
        broken=torch.zeros_like(kind),
    )
    for row in range(len(large)):
        weighting, used = Weighting(int(kind[row])), use[row].nonzero().flatten().tolist()
        if weighting == Weighting.NONE or not used:
            continue
        if weighting == Weighting.ALONE:
            length = min(experts[used[0]].shape[1], large.shape[1])
            expert = experts[used[0]][row, :length].float()
            if broken(expert):
                out.broken[row] = FIRST_EXPERT + used[0]
                continue
            out.logits[row] = -torch.inf
            out.logits[row, :length] = expert
            out.alpha[row, used[0]] = 1.0
            continue
        if broken(large[row]):
            continue
        members = [experts[t][row] for t in used]
        common = min(member.shape[1] for member in [large, base, *experts])
        numbered = [(BASE, base[row]), *((FIRST_EXPERT + t, member) for t, member in zip(used, members, strict=True))]
        culprit = next((number for number, member in numbered if broken(member[:common])), 0)
        if culprit:
            out.broken[row] = culprit
            continue
        problem = Row(large[row, :common], base[row, :common], [member[:common] for member in members])
        if weighting == Weighting.STATIC:
            weights = [float(alpha[row, t]) for t in used]
        else:
            weights = problem.solve(weighting, float(alpha_max[row]))
        fused = large[row].double()
        for t, weight, delta in zip(used, weights, problem.deltas, strict=True):
            fused[:common] += weight * delta
            out.alpha[row, t] = weight
        out.logits[row] = fused.float()
        out.kl_target[row] = problem.target.float()
        out.kl_fused[row] = problem.at(weights).float()
    return out
