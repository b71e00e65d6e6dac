"""One batch row after another on the CPU: load the members, choose the weights, write the fused logits."""

# mypy: disable-error-code="no-any-return"
from typing import Any, NamedTuple

import numpy as np

from fusion_kernels import batch
from fusion_kernels.cpu import moments
from fusion_kernels.cpu.search import Best, Line, at_one, search, search_on_grid
from fusion_kernels.cpu.vector import entry, jit
from fusion_kernels.search import LEAD, LEAD_SHARE
from fusion_kernels.weighting import Weighting

broken_expert, broken_against = jit(batch.broken_expert), jit(batch.broken_against)
# As plain numbers, which numba compiles into the code.
NONE, STATIC, KL_GRID, KL_SAFE, ALONE = (
    int(weighting)
    for weighting in (Weighting.NONE, Weighting.STATIC, Weighting.KL_GRID, Weighting.KL_SAFE, Weighting.ALONE)
)
# What is known of a used expert: delta at large's top token, the largest delta above it, a, b and the entropy in nats.
FACTS = np.dtype([(name, np.float64) for name in ("centre", "reach", "a", "b", "entropy")])


class Settings(NamedTuple):
    """How the rows are fused: [B], [B, T], [B, T], [B] as in `fuse_logits`."""

    kind: Any
    use: Any
    alpha: Any
    alpha_max: Any


class Scratch(NamedTuple):
    """One thread's memory; float32 unless said."""

    against: Any
    """[V_c]: the logits that an expert is compared with."""
    expert: Any
    """[V_c]: an expert's logits; later the sum of all weighted deltas."""
    weights: Any
    """[V_c]: exp(large - top)."""
    deltas: Any
    """[T, V_c]."""
    blocks: Any
    """[2, BLOCK]."""
    facts: Any
    """[T] `FACTS` records."""
    table: Any
    """[GRID_POINTS, COLUMNS] float64."""


class Row(NamedTuple):
    """The row at work."""

    index: Any
    use: Any
    """[T] bool."""
    large: Any
    """[V_c]: large's logits in the output, to be fused in place."""
    top: float
    """The largest of them."""
    limit: float
    """The largest weight that a search may choose."""


@entry
def fuse_rows(first: int, stop: int, members: Any, settings: Any, out: Any, scratch: Any) -> None:
    """Rows first .. stop of the batch.

    Args:
        members: [1 + 2 T] `MEMBER` records, in the order of `Batch.members`.
        settings: `Settings`.
        out: `Fused` of arrays, zeroed except the logits.
        scratch: `Scratch`.
    """
    for index in range(first, stop):
        kind, use, logits, common = settings.kind[index], settings.use[index], out.logits[index], scratch.against.size
        top, _, broken = moments.load(members[0], index, logits.size, logits)
        if kind == NONE or not use.any():
            continue
        if kind == ALONE:
            copy_expert(index, members, use, out)
        elif not broken:
            large = logits[:common]
            if common < logits.size:
                top = moments.largest(large)
            row = Row(index, use, large, top, float(max(settings.alpha_max[index], np.float32(0.0))))
            out.broken[index] = load_deltas(row, members, scratch)
            if not out.broken[index]:
                choose_weights(row, kind, settings.alpha[index], out, scratch)
                for t in range(use.size):
                    if use[t] and out.alpha[index, t] != 0.0:
                        moments.add(large, scratch.deltas[t], out.alpha[index, t])


@jit
def copy_expert(index: int, members: Any, use: Any, out: Any) -> None:
    """Write the first used expert's own logits, -inf past its length; where they are broken, the large model's stay."""
    t = 0
    while not use[t]:
        t += 1
    logits, member = out.logits[index], members[1 + use.size + t]
    length = min(member.length, logits.size)
    expert = np.empty(length, np.float32)
    _, _, broken = moments.load(member, index, length, expert)
    if broken:
        out.broken[index] = broken_expert(t)
        return
    out.alpha[index, t] = 1.0
    logits[:length] = expert
    logits[length:] = np.float32(-np.inf)


@jit
def load_deltas(row: Any, members: Any, scratch: Any) -> int:
    """Fill the used experts' deltas and facts; what is broken first, as `Fused.broken` numbers it, 0 without any."""
    against, expert, number = scratch.against, scratch.expert, row.use.size
    # Experts that follow each other are compared with the same, as a rule: it is loaded once.
    loaded, against_top, against_masked = 0, np.float32(0.0), False
    for t in range(number):
        if not row.use[t]:
            continue
        if loaded == 0 or not is_same(members[1 + t], members[loaded]):
            loaded = 1 + t
            against_top, against_masked, broken = moments.load(members[loaded], row.index, against.size, against)
            if broken:
                return broken_against(t)
        expert_top, masked, broken = moments.load(members[1 + number + t], row.index, expert.size, expert)
        if broken:
            return broken_expert(t)
        fact = scratch.facts[t]
        centre, highest = moments.delta_of(expert, against, row.large, row.top, scratch.deltas[t])
        fact.centre, fact.reach = centre, highest - centre
        tops = (expert_top, against_top)
        if masked or against_masked:
            tops = moments.joint_tops(expert, against)
        fact.a, fact.b, fact.entropy = moments.targets(expert, against, tops[0], tops[1])
    return 0


@jit
def is_same(one: Any, other: Any) -> bool:
    """Whether two `MEMBER` records are of the same logits, whatever their lengths."""
    return (one.address == other.address) & (one.row_bytes == other.row_bytes) & (one.dtype == other.dtype)


@jit
def choose_weights(row: Any, kind: int, alpha: Any, out: Any, scratch: Any) -> None:
    """Write the row's weights, its targets, and how far the weights move it."""
    a, b = mean_target(row.use, scratch.facts)
    out.kl_target[row.index, 0], out.kl_target[row.index, 1] = a, b
    masked = row.top == -np.inf
    if kind == STATIC:
        for t in range(row.use.size):
            if row.use[t]:
                out.alpha[row.index, t] = alpha[t]
    elif not masked:
        moments.weigh(row.large, row.top, scratch.weights)
        if kind == KL_SAFE:
            search_each(row, out, scratch)
        else:
            search_best(row, a, b, kind == KL_GRID, out, scratch)
    if kind in (STATIC, KL_SAFE) and not masked:
        measure_move(row, out, scratch)


@jit
def mean_target(use: Any, facts: Any) -> tuple[float, float]:
    """The means of a and b over the used experts."""
    a, b, used = 0.0, 0.0, use.sum()
    for t in range(use.size):
        if use[t]:
            a += facts[t].a / used
            b += facts[t].b / used
    return a, b


@jit
def line_of(row: Any, t: int, scratch: Any) -> Any:
    """The row along expert t's delta."""
    fact = scratch.facts[t]
    return Line(row.large, scratch.weights, scratch.deltas[t], row.top, fact.centre, fact.reach, scratch.blocks)


@jit
def search_best(row: Any, a: float, b: float, on_grid: bool, out: Any, scratch: Any) -> None:
    """Write the best single expert's weight for the mean targets, and f and g there."""
    chosen, best = -1, Best(0.0, np.inf, 0.0, 0.0)
    for t in range(row.use.size):
        if row.use[t]:
            line = line_of(row, t, scratch)
            if on_grid:
                found = search_on_grid(line, a, b, row.limit, scratch.table)
            else:
                found = search(line, a, b, row.limit, scratch.table)
            if found.loss < best.loss * (1 - LEAD_SHARE) - LEAD:
                chosen, best = t, found
    out.alpha[row.index, chosen] = best.x
    out.kl_fused[row.index, 0], out.kl_fused[row.index, 1] = best.f, best.g


@jit
def search_each(row: Any, out: Any, scratch: Any) -> None:
    """Write every expert's weight for its own targets, scaled as `reference.trust` says."""
    for t in range(row.use.size):
        fact = scratch.facts[t]
        if row.use[t] and fact.a > 0.0:
            found = search(line_of(row, t, scratch), fact.a, fact.b, row.limit, scratch.table)
            out.alpha[row.index, t] = found.x * np.sqrt(fact.a / (fact.a + fact.entropy))


@jit
def measure_move(row: Any, out: Any, scratch: Any) -> None:
    """Write f and g of a row whose weights several experts may have."""
    total = scratch.expert
    total[:] = np.float32(0.0)
    for t in range(row.use.size):
        if row.use[t]:
            moments.add(total, scratch.deltas[t], out.alpha[row.index, t])
    line = Line(row.large, scratch.weights, total, row.top, 0.0, 0.0, scratch.blocks)
    out.kl_fused[row.index, 0], out.kl_fused[row.index, 1] = at_one(line, scratch.table)
