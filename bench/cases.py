"""Random fusion problems, from ordinary logits to those that break naive code, and how a result is judged."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fusion_kernels import Fused, Weighting, fuse_logits, reference
from fusion_kernels.batch import once_each
from fusion_kernels.search import LEAD, LEAD_SHARE

KINDS = tuple(Weighting)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
AGAINST = ("base", "own", "nothing", "large")
"""What an expert may be compared with: the one base, a tensor of its own, zeros, one row in memory for all rows, or the
large model."""


@dataclass
class Case:
    """The arguments of `fuse_logits`."""

    large: Tensor
    against: list[Tensor]
    experts: list[Tensor]
    kind: Tensor
    use: Tensor
    alpha: Tensor
    alpha_max: Tensor

    def fuse(self, impl: str | None) -> Fused:
        settings = {"kind": self.kind, "use": self.use, "alpha": self.alpha, "alpha_max": self.alpha_max}
        return fuse_logits(self.large, self.against, self.experts, **settings, impl=impl)

    def to(self, device: str) -> "Case":
        """A copy there: what is one tensor stays one, and so does a row that stands for all rows."""

        def move(member: Tensor) -> Tensor:
            return member.to(device) if member.stride(0) else member[:1].to(device).expand(member.shape)

        large, *members = once_each(move, self.members)
        settings = {name: getattr(self, name).to(device) for name in ("kind", "use", "alpha", "alpha_max")}
        number = len(self.experts)
        return Case(large, members[:number], members[number:], **settings)

    def row_alone(self, i: int) -> "Case":
        rows = slice(i, i + 1)
        settings = {name: getattr(self, name)[rows] for name in ("kind", "use", "alpha", "alpha_max")}
        against, experts = ([member[rows] for member in members] for members in (self.against, self.experts))
        return Case(self.large[rows], against, experts, **settings)

    @property
    def members(self) -> list[Tensor]:
        return [self.large, *self.against, *self.experts]

    def common(self) -> int:
        return min(member.shape[1] for member in self.members)

    def row(self, i: int, used: list[int]) -> reference.Row:
        common = self.common()
        against, experts = ([members[t][i, :common].float() for t in used] for members in (self.against, self.experts))
        return reference.Row(self.large[i, :common].float(), against, experts)


def logits(generator: torch.Generator, rows: int, vocabulary: int, scale: float) -> Tensor:
    """Logits as models have them: a bell of size `scale`, and a few tokens far above it."""
    values = torch.randn(rows, vocabulary, generator=generator) * scale
    peaks = torch.randint(0, vocabulary, (rows, 3), generator=generator)
    return values.scatter_add(1, peaks, torch.rand(rows, 3, generator=generator) * 4 * scale)


def make(
    seed: int,
    rows: int = 5,
    vocabulary: int = 97,
    number: int = 1,
    *,
    scale: float = 3.0,
    spread: float = 1.5,
    kinds: tuple[Weighting, ...] = KINDS,
    dtype: torch.dtype = torch.float32,
    paddings: tuple[int, ...] = (0,),
    masked: float = 0.0,
    against: tuple[str, ...] = ("base",),
    broken: float = 0.0,
) -> Case:
    """A case with `rows` rows that go through `kinds`, and experts that go through `against`.

    Experts, and what is an expert's own to be compared with, are the base plus `spread` noise. `masked` is the share of
    masked tokens, `broken` that of rows of a member that hold NaN or +inf.
    """
    generator = torch.Generator().manual_seed(seed)
    large, base = logits(generator, rows, vocabulary, scale), logits(generator, rows, vocabulary, scale)
    experts = [base + logits(generator, rows, vocabulary, spread) for _ in range(number)]
    chosen = [against[t % len(against)] for t in range(number)]
    others = [
        torch.zeros(1, vocabulary) if name == "nothing" else base + logits(generator, rows, vocabulary, spread)
        for name in chosen
        if name not in ("base", "large")
    ]
    members = []
    for i, member in enumerate([large, base, *experts, *others]):
        padding = paddings[i % len(paddings)]
        tail = torch.randn(len(member), padding, generator=generator) * scale
        member = member.masked_fill(torch.rand(member.shape, generator=generator) < masked, -torch.inf)
        members.append(torch.cat([member, tail], dim=1).clamp(-1e4, 1e4 if scale > 100 else None).to(dtype))
        if masked:
            members[-1][:, :vocabulary][member == -torch.inf] = -torch.inf
        if broken:
            _break(generator, members[-1], broken)
    alpha_max = torch.rand(rows, generator=generator) * 3
    alpha_max[torch.rand(rows, generator=generator) < 0.5] = 2.0
    own, shared = iter(members[2 + number :]), {"large": members[0], "base": members[1]}
    return Case(
        members[0],
        [shared[name] if name in shared else next(own).expand(rows, -1) for name in chosen],
        members[2 : 2 + number],
        torch.tensor([kinds[i % len(kinds)] for i in range(rows)], dtype=torch.int8),
        torch.rand(rows, number, generator=generator) < 0.7,
        torch.rand(rows, number, generator=generator) * 3 - 1,
        alpha_max,
    )


def _break(generator: torch.Generator, member: Tensor, share: float) -> None:
    """Put NaN or +inf somewhere in this share of a member's rows."""
    for row in (torch.rand(len(member), generator=generator) < share).nonzero().flatten():
        place = torch.randint(0, member.shape[1], (), generator=generator)
        which = int(torch.randint(0, 3, (), generator=generator))
        member[row, place] = (torch.nan, -torch.nan, torch.inf)[which]


def same_values(actual: Tensor, expected: Tensor, tolerance: Tensor | float, what: str) -> None:
    """Equal up to `tolerance`, with equal infinities and NaN."""
    exact = (actual == expected) | (actual.isnan() & expected.isnan())
    off = torch.where(exact, 0.0, (actual - expected).abs())
    assert bool((off <= tolerance).all()), f"{what}: off by {float(off.max())}, allowed {tolerance}"


def judge(case: Case, impl: str | None, device: str = "cpu") -> None:
    """Every promise of `fuse_logits` about one result, checked against the float64 reference.

    Where members reach size s, float32 itself resolves a log-probability to about s * 2^-23, and the objective to the
    square of that times what alpha and the targets amplify; the tolerances carry those terms.
    """
    out = Fused(*(value.cpu() for value in case.to(device).fuse(impl)))
    want = case.fuse("reference")
    assert torch.equal(out.broken, want.broken)
    for i in range(len(case.large)):
        kind, used = Weighting(int(case.kind[i])), case.use[i].nonzero().flatten().tolist()
        unused = [t for t in range(case.use.shape[1]) if t not in used]
        assert bool((out.alpha[i, unused] == 0).all())
        plain = kind == Weighting.NONE or not used or bool(out.fallback[i]) or reference.broken(case.large[i])
        if plain or kind == Weighting.ALONE:
            same_values(out.logits[i], want.logits[i], 0.0, "copied logits")
            same_values(out.alpha[i], want.alpha[i], 0.0, "alpha")
            same_values(out.kl_target[i], want.kl_target[i], 0.0, "targets")
            same_values(out.kl_fused[i], want.kl_fused[i], 0.0, "divergences")
            continue
        problem = case.row(i, used)
        alpha = [float(out.alpha[i, t]) for t in used]
        finite = torch.cat([member[i].float() for member in case.members])
        size = float(torch.where(finite.isfinite(), finite, 0.0).abs().max()) * 2.0**-23
        reach = 1.0 + sum(abs(a) for a in alpha)
        target, found = problem.target, problem.at(alpha)
        same_values(out.kl_target[i].double(), target, 1e-5 + 1e-5 * target.abs() + 8 * size, "targets")
        steep = _steepness(problem, alpha) if max(alpha) > 0 else 1.0
        room = 1e-5 + 1e-5 * found.abs() + 8 * size * reach * steep
        same_values(out.kl_fused[i].double(), found, room, "divergences")
        fused = case.large[i].double()
        for a, delta in zip(alpha, problem.deltas, strict=True):
            fused[: case.common()] += a * delta
        same_values(out.logits[i].double(), fused, 2e-6 + 8 * size * reach, "fused logits")
        if kind == Weighting.STATIC:
            assert torch.equal(out.alpha[i, used], case.alpha[i, used])
            continue
        if kind == Weighting.KL_SAFE:
            _judge_safe(problem, alpha, float(case.alpha_max[i]), size)
            continue
        assert sum(a != 0 for a in alpha) <= 1
        assert all(0 <= a <= max(float(case.alpha_max[i]), 0) for a in alpha)
        loss = float(reference.objective(found, target))
        best = [float(want.alpha[i, t]) for t in used]
        least = float(reference.objective(problem.at(best), target))
        scale = float(target.square().sum())
        slack = 8 * size * steep * reach * (loss**0.5 + 8 * size * steep)
        if [a != 0 for a in alpha] != [a != 0 for a in best]:
            # Whether the other expert leads is a matter of rounding.
            least = (least + LEAD) / (1 - LEAD_SHARE)
        if kind == Weighting.KL_GRID:
            on_grid = reference.grid(float(case.alpha_max[i])).tolist()
            assert all(a in on_grid for a in alpha)
            assert alpha == best or loss <= least + 1e-6 * max(least, scale, 1.0) + slack, (alpha, best, loss, least)
        else:
            assert loss <= least * (1 + 1e-4) + 1e-6 + slack, (alpha, best, loss, least, slack)


def _judge_safe(problem: reference.Row, alpha: list[float], alpha_max: float, size: float) -> None:
    """Each expert's weight, without what `trust` takes from it, is a best one for the expert's own targets."""
    # `a` is a difference of float32 sums; where it nearly vanishes, so does all that is known of its root.
    noise = 1e-5 + 8 * size
    most = reference.trust(problem.targets + noise, problem.entropies).tolist()
    kept = reference.trust(problem.targets, problem.entropies).tolist()
    for t, (weight, delta, target) in enumerate(zip(alpha, problem.deltas, problem.targets, strict=True)):
        error = 1e-3 + 0.5 * noise / max(float(target[0]), 1e-30)
        if error > 0.1:
            assert abs(weight) <= max(alpha_max, 0) * most[t] * (1 + 1e-3)
            continue
        own = weight / kept[t]
        assert -1e-6 <= own <= max(alpha_max, 0) * (1 + error)
        points = torch.tensor([own, reference.minimise(problem.large, delta, target, alpha_max)[0]])
        loss, least = reference.objective(reference.divergences(problem.large, delta, points.double()), target).tolist()
        # An error of trust moves the weight by as much.
        steep = (1.0 + float(delta.abs().max())) * (1.0 + own)
        slack = 8 * size * steep * (loss**0.5 + 8 * size * steep)
        near = reference.divergences(
            problem.large, delta, torch.tensor([own * (1 - error), own * (1 + error)]).double()
        )
        slack += float((reference.objective(near, target) - loss).abs().max())
        assert loss <= least * (1 + 1e-4) + 1e-6 + slack, (own, points, loss, least)


def _steepness(problem: reference.Row, alpha: list[float]) -> float:
    """How much f and g change, at most, for a unit change of the logits near these weights: the spread of the delta."""
    return 1.0 + max(float(delta.abs().max()) for delta in problem.deltas) * max(alpha)
