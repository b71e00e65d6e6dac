"""Beyond the paper: all T weights at once, in [0, alpha_max]^T, instead of one expert at a time.

The paper writes its objective over all weights but searches one expert at a time. With alpha a vector and
A(alpha) = log sum_v P_v exp(alpha . d_v), grad A = E[d] and hess A = Cov[d] under the fused distribution:
    f = alpha . E[d] - A,  grad f = Cov[d] alpha        g = A - alpha . E_P[d],  grad g = E[d] - E_P[d]
and L = (f - a)^2 + (g - b)^2 is minimised by damped Gauss-Newton (two residuals, T unknowns) kept in the box. Two
equations leave T - 2 directions free, so a small weight on |alpha|^2 picks the smallest of equally good vectors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fusion_kernels import Weighting, fuse_logits

STEPS = 40
# Share of L(0) that the squared norm may cost: enough to choose among equals, too little to matter otherwise.
NORM = 1e-6


def fuse_jointly(large: Tensor, base: Tensor, experts: Sequence[Tensor], alpha_max: float) -> tuple[Tensor, Tensor]:
    """The fused logits [N, V] and the weights [N, T], all float32 and without masked tokens.

    Args:
        large: [N, V] logits.
        base: [N, V_b].
        experts: T tensors [N, V_t].
        alpha_max: the largest weight, not negative.
    """
    rows, limit = len(large), torch.full((len(large),), alpha_max)
    # The search starts from the best single expert, and aims at what the single experts aim at.
    single = fuse_logits(
        large,
        base,
        experts,
        kind=torch.full((rows,), Weighting.KL, dtype=torch.int8),
        use=torch.ones(rows, len(experts), dtype=torch.bool),
        alpha=torch.zeros(rows, len(experts)),
        alpha_max=limit,
    )
    common = min(member.shape[1] for member in (large, base, *experts))
    deltas = torch.stack([expert[:, :common] - base[:, :common] for expert in experts], dim=1)
    log_p = large[:, :common].log_softmax(1)
    alpha = solve(log_p, deltas, single.kl_target, limit, single.alpha).float()
    logits = large.clone()
    logits[:, :common] += (alpha[:, None] @ deltas)[:, 0]
    return logits, alpha


def solve(log_p: Tensor, deltas: Tensor, target: Tensor, alpha_max: Tensor, start: Tensor) -> Tensor:
    """[B, T] float64 weights, with L no larger than at `start`.

    Args:
        log_p: [B, V_c] log-softmax of large, -inf where masked, some token unmasked.
        deltas: [B, T, V_c]; all zero for an expert that the row does not use, which then keeps weight 0.
        target: [B, 2], mean a and mean b.
        alpha_max: [B].
        start: [B, T], the best single expert's weights, others 0.
    """
    log_p, deltas, target = log_p.double(), deltas.double(), target.double()
    limit = alpha_max.double().clamp(min=0)[:, None].expand(start.shape)
    # f and g do not change with the offset of a delta; around the top token's they suffer least from rounding.
    top = log_p.argmax(1)[:, None, None].expand(-1, deltas.shape[1], 1)
    deltas = deltas - deltas.gather(2, top)
    live = (deltas != 0).any(2)
    count = live.sum(1, keepdim=True).clamp(min=1)
    price = NORM * target.square().sum(1)
    first = start.double()
    best, best_loss = first, _loss(log_p, deltas, target, first)
    # Several starts, as L has several minima: the best single expert, its weight shared out, the middle, the
    # end, and one expert at its end with the others halfway.
    begins = [first, first.amax(1, keepdim=True) / count * live, limit / 2 * live, limit * live]
    begins += [
        limit / 2 * live * (1 + unit) for unit in torch.eye(start.shape[1], dtype=first.dtype, device=first.device)
    ]
    for begin in begins:
        alpha = _descend(log_p, deltas, target, torch.minimum(begin, limit), limit, live, price)
        loss = _loss(log_p, deltas, target, alpha)
        lower = (loss < best_loss)[:, None]
        best, best_loss = torch.where(lower, alpha, best), torch.minimum(loss, best_loss)
    return best


def _moments(log_p: Tensor, deltas: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A [B], E[d] [B, T] and the fused probabilities [B, V_c] at alpha; A(0) = 0."""
    tilted = log_p + (alpha[:, None, :] @ deltas)[:, 0]
    value = tilted.logsumexp(1)
    fused = (tilted - value[:, None]).exp()
    return value, (deltas @ fused[..., None])[..., 0], fused


def _residual(alpha: Tensor, value: Tensor, mean: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """[B, 2]: (f - a, g - b)."""
    return torch.stack([(alpha * mean).sum(1) - value, value - (alpha * start).sum(1)], dim=1) - target


def _loss(log_p: Tensor, deltas: Tensor, target: Tensor, alpha: Tensor) -> Tensor:
    start = _moments(log_p, deltas, torch.zeros_like(alpha))[1]
    value, mean, _ = _moments(log_p, deltas, alpha)
    return _residual(alpha, value, mean, start, target).square().sum(1)


def _descend(
    log_p: Tensor, deltas: Tensor, target: Tensor, alpha: Tensor, limit: Tensor, live: Tensor, price: Tensor
) -> Tensor:
    """Levenberg-Marquardt on L + price |alpha|^2 inside the box; a step that does not lower it is damped more."""
    start = _moments(log_p, deltas, torch.zeros_like(alpha))[1]
    damping = torch.full_like(price, 1e-3)
    unit = torch.eye(alpha.shape[1], dtype=alpha.dtype, device=alpha.device)

    def cost(at: Tensor, residual: Tensor) -> Tensor:
        return residual.square().sum(1) + price * at.square().sum(1)

    value, mean, fused = _moments(log_p, deltas, alpha)
    residual = _residual(alpha, value, mean, start, target)
    for _ in range(STEPS):
        centred = deltas - mean[..., None]
        covariance = (centred * fused[:, None]) @ centred.transpose(1, 2)
        slopes = torch.stack([(covariance @ alpha[..., None])[..., 0], mean - start], dim=1)
        gradient = (slopes.transpose(1, 2) @ residual[..., None])[..., 0] + price[:, None] * alpha
        # Weights that sit at an end of their range and would leave it take no part in the step.
        free = live & ~(((alpha <= 0) & (gradient > 0)) | ((alpha >= limit) & (gradient < 0)))
        slopes = slopes * free[:, None]
        curve = slopes.transpose(1, 2) @ slopes
        scale = curve.diagonal(dim1=1, dim2=2).amax(1) + 1e-12
        curve = curve + (price + damping * scale)[:, None, None] * unit
        move = torch.linalg.solve(curve, -gradient * free)
        trial = torch.minimum((alpha + move).clamp(min=0), limit)
        new_value, new_mean, new_fused = _moments(log_p, deltas, trial)
        new_residual = _residual(trial, new_value, new_mean, start, target)
        lower = cost(trial, new_residual) < cost(alpha, residual)
        damping = torch.where(lower, damping / 4, damping * 6).clamp(1e-9, 1e9)
        alpha, residual = torch.where(lower[:, None], trial, alpha), torch.where(lower[:, None], new_residual, residual)
        mean, fused = torch.where(lower[:, None], new_mean, mean), torch.where(lower[:, None], new_fused, fused)
    return alpha
