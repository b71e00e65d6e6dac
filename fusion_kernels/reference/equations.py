"""The equations in float64 for one row, written to be read beside the paper (arXiv 2406.15480, eq. 4, 6, Algorithm 1).

Names follow the paper: P and Q_t are the distributions of the large model and of expert t over the common ids. Expert t
is compared with R_t; in the paper that is Q, the base's distribution, for every t.
"""

import torch
from torch import Tensor

from fusion_kernels.search import GRID_POINTS, GRID_STEPS_PER_UNIT

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
    """[T]: how much of its weight each of T experts keeps under `KL_SAFE`, sqrt(a / (a + H(Q_t))), a = KL(Q_t || R_t).

    a + H(Q_t) = -sum Q_t log R_t is a cross-entropy on the expert, the base's as a rule, so under the root is the share
    of it that fine-tuning accounts for, as R^2 is the share of a variance that a model explains; the root is to it what
    the correlation is to R^2. Near 1 where the expert learned something and is sure of it, near 0 where it says what it
    is compared with, or does not know.

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
