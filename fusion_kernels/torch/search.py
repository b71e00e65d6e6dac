"""The search of `fusion_kernels.search` for a batch of rows in torch; each row stops on its own."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fusion_kernels.search import (
    ABSOLUTE,
    CELLS,
    FLOOR,
    LEVELS,
    MARGIN,
    MESH,
    NEWTON_STEPS,
    RELATIVE,
    ROUGH,
    hermite,
)

Cumulants = Callable[[Tensor], Tensor]


class Best(NamedTuple):
    """The best weights so far, all [B] float64."""

    x: Tensor
    loss: Tensor
    f: Tensor
    g: Tensor


class Goal(NamedTuple):
    """What a row aims at and where A starts, all [B] float64."""

    a: Tensor
    b: Tensor
    start: Tensor
    """A(0) as computed, which every A is relative to."""
    mean: Tensor
    """A'(0)."""

    def loss(self, f: Tensor, g: Tensor) -> Tensor:
        """L of [B, ...] divergences."""
        shape = (-1, *[1] * (f.dim() - 1))
        return (f - self.a.view(shape)).square() + (g - self.b.view(shape)).square()


def solve(cumulants: Cumulants, target: Tensor, alpha_max: Tensor) -> Best:
    """The weights of all rows; each row stops on its own.

    Args:
        cumulants: maps weights [B] to [B, 4]: A (with any offset of the row's own), A', A'', A'''.
        target: [B, 2], a and b.
        alpha_max: [B], not negative.
    """
    limit = alpha_max.double()
    begin = cumulants(torch.zeros_like(alpha_max)).double()
    goal = Goal(target[:, 0].double(), target[:, 1].double(), begin[:, 0], begin[:, 1])
    zero = torch.zeros_like(limit)
    best = Best(zero, (goal.a.square() + goal.b.square()) * (1 - MARGIN), zero, zero)
    active = (limit > 0) & (best.loss >= ABSOLUTE)
    low, high = zero, limit
    guess, left, right = zero, zero, zero
    to_polish = torch.zeros_like(active)
    for level in range(LEVELS):
        if not worth(active):
            break
        step = (high - low) / CELLS
        points = low[:, None] + step[:, None] * torch.arange(CELLS + 1, device=low.device)
        table = torch.stack([cumulants(x.float()) for x in points.unbind(1)], dim=1).double()
        values = table[..., 0] - goal.start[:, None]
        f, g = _divergences(points, values, table[..., 1], goal)
        best = _better(best, points, goal.loss(f, g), f, g, active)
        alive, rough, mesh = _cells(points, step, values, table, f, g, goal, best.loss)
        active = active & alive.any(1)
        where = mesh.flatten(1).argmin(1)
        cell, at = where // (MESH + 1), where % (MESH + 1)
        inner = at.clamp(1, MESH - 1)
        rows = torch.arange(len(mesh), device=mesh.device)
        before, here, after = (mesh[rows, cell, inner + k] for k in (-1, 0, 1))
        bow = (before - 2 * here + after).clamp(min=1e-30)
        bent = torch.where(inner == at, 0.5 * (before - after) / bow, 0.0)
        x = low + step * (cell + (at + bent) / MESH)
        polish = active & ((rough.amax(1) <= ROUGH) | (level == LEVELS - 1))
        guess, to_polish = torch.where(polish, x, guess), to_polish | polish
        left = torch.where(polish, low + step * (cell - 1).clamp(min=0), left)
        right = torch.where(polish, low + step * (cell + 2).clamp(max=CELLS), right)
        active = active & ~polish
        first = alive.float().argmax(1)
        last = CELLS - 1 - alive.flip(1).float().argmax(1)
        wide = last + 1 - first > CELLS // 2
        first = torch.where(wide, (cell - 1).clamp(min=0), first)
        last = torch.where(wide, (cell + 1).clamp(max=CELLS - 1), last)
        low, high = low + step * first, low + step * (last + 1)
    return _newton(cumulants, goal, best, guess, left, right, to_polish)


def worth(active: Tensor) -> bool:
    """Whether any row goes on; elsewhere than on the CPU that would wait for the device, so the answer is yes."""
    return active.device.type != "cpu" or bool(active.any())


def _divergences(x: Tensor, value: Tensor, mean: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    start = goal.mean.view(-1, *[1] * (x.dim() - 1))
    return (x * mean - value).clamp(min=0), (value - x * start).clamp(min=0)


def _better(best: Best, x: Tensor, loss: Tensor, f: Tensor, g: Tensor, active: Tensor) -> Best:
    """`best`, or the first smallest of the candidates [B, n] where that is lower."""
    least, k = loss.min(1)
    new = Best(*(value.gather(1, k[:, None])[:, 0] for value in (x, loss, f, g)))
    lower = active & (least < best.loss)
    return Best(*(torch.where(lower, n, o) for n, o in zip(new, best, strict=True)))


def _cells(
    points: Tensor, step: Tensor, values: Tensor, table: Tensor, f: Tensor, g: Tensor, goal: Goal, least: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Per cell: whether it may hold the minimum, its roughness, L [MESH + 1] interpolated (inf where it may not)."""
    a, b, h = goal.a[:, None], goal.b[:, None], step[:, None]
    miss_f = (f[:, :-1] - a).clamp(min=0) + (a - f[:, 1:]).clamp(min=0)
    miss_g = (g[:, :-1] - b).clamp(min=0) + (b - g[:, 1:]).clamp(min=0)
    alive = miss_f.square() + miss_g.square() < (least * (1 - RELATIVE) - ABSOLUTE)[:, None]
    left = (values[:, :-1], table[:, :-1, 1] * h, table[:, :-1, 2] * h * h)
    right = (values[:, 1:], table[:, 1:, 1] * h, table[:, 1:, 2] * h * h)
    rise = right[1] - left[1]
    bend = 6 * (right[0] - left[0]) - 3 * (left[1] + right[1])
    surprise = ((left[2] - rise - bend).abs() + (right[2] - rise + bend).abs()) / h.clamp(min=1e-30)
    rough = torch.where(alive, surprise * points[:, 1:] / (f[:, 1:] - f[:, :-1] + 1e-4 * (a + b) + FLOOR), 0.0)
    basis, slopes = hermite(points.device)
    ends = torch.stack([*left, *right], dim=-1)
    x = points[:, :-1, None] + h[..., None] * torch.arange(MESH + 1, device=points.device) / MESH
    mean = ends @ slopes / h[..., None].clamp(min=1e-30)
    mesh = goal.loss(x * mean - ends @ basis, ends @ basis - x * goal.mean[:, None, None])
    return alive, rough, torch.where(alive[..., None] & mesh.isfinite(), mesh, torch.inf)


def _newton(cumulants: Cumulants, goal: Goal, best: Best, x: Tensor, low: Tensor, high: Tensor, active: Tensor) -> Best:
    """Safe Newton on L' in [low, high] from x; never worse than `best`."""
    for _ in range(NEWTON_STEPS):
        if not worth(active):
            break
        value, mean, spread, skew = cumulants(x.float()).double().unbind(1)
        value = value - goal.start
        f, g = _divergences(x, value, mean, goal)
        loss = goal.loss(f, g)
        best = _better(best, x[:, None], loss[:, None], f[:, None], g[:, None], active)
        slope_f, slope_g = x * spread, mean - goal.mean
        slope = (f - goal.a) * slope_f + (g - goal.b) * slope_g
        steady = slope_f.square() + slope_g.square()
        bend = steady + (f - goal.a) * (spread + x * skew) + (g - goal.b) * spread
        bend = torch.where(bend < 0.1 * steady, steady, bend)
        high, low = torch.where(slope > 0, x, high), torch.where(slope > 0, low, x)
        wanted = x - slope / bend
        middle = 0.5 * (low + high)
        at_end = (wanted > high) & (high - x < 1e-9 + 1e-7 * x)
        inside = (wanted >= low) & (wanted <= high) & (bend > 0)
        then = torch.where(inside, wanted, torch.where(at_end, high, middle))
        step = then - x
        error = step.square() * torch.maximum(spread.sqrt(), skew.abs() / (spread + 1e-30))
        # Without a bend nothing is known of the error: at 0, where L is always level, or where f and g are saturated.
        settled = (bend > 0) & (bend * error.square() <= RELATIVE * loss + 1e-9)
        # The last step needs no evaluation: A is known there by its Taylor series.
        value = value + step * (mean + step * (spread / 2 + step * skew / 6))
        f, g = _divergences(then, value, mean + step * (spread + step * skew / 2), goal)
        loss = goal.loss(f, g)
        best = _better(best, then[:, None], loss[:, None], f[:, None], g[:, None], active & settled)
        active, x = active & ~settled, then
    return best
