"""One batch row after another on the CPU: read the members, choose the weights, write the fused logits."""

from typing import Any

import numpy as np

from fusion_kernels import cpu_moments, cpu_solve
from fusion_kernels.vector import entry, jit
from fusion_kernels.weighting import BASE, FIRST_EXPERT, GRID_POINTS, GRID_STEPS_PER_UNIT, Weighting

NONE, STATIC, KL_GRID, ALONE = int(Weighting.NONE), int(Weighting.STATIC), int(Weighting.KL_GRID), int(Weighting.ALONE)
KL_SAFE = int(Weighting.KL_SAFE)
# Rows of the scratch matrix before the deltas: base, expert, weights.
FIXED_ROWS = 3
TABLE_COLUMNS = 5


@jit
def alone(member: Any, row: int, logits: Any) -> bool:
    """Write the expert's own logits; False, and nothing written, when they are broken."""
    length = min(member[2], logits.size)
    expert = np.empty(length, np.float32)
    _, _, bad = cpu_moments.load(member[0] + row * member[1], member[3], length, expert)
    if bad:
        return False
    logits[:length] = expert
    logits[length:] = np.float32(-np.inf)
    return True


@entry
def fuse_rows(
    first: int,
    stop: int,
    members: Any,
    common: int,
    kind: Any,
    use: Any,
    alpha: Any,
    alpha_max: Any,
    logits: Any,
    out_alpha: Any,
    kl_target: Any,
    kl_fused: Any,
    broken: Any,
    rows: Any,
    blocks: Any,
) -> None:
    """Rows first .. stop of the batch.

    Args:
        members: [2 + T, 4] int64, large, base and experts: address, bytes per row, length, dtype code.
        common: V_c.
        kind, use, alpha, alpha_max: [B], [B, T], [B, T], [B] as in `fuse_logits`.
        logits, out_alpha, kl_target, kl_fused, broken: the results, zeroed except the logits.
        rows: [FIXED_ROWS + T, V_c] float32 scratch.
        blocks: [2, BLOCK] float32 scratch.
    """
    number = use.shape[1]
    base, expert, weights, deltas = rows[0], rows[1], rows[2], rows[FIXED_ROWS:]
    table = np.empty((GRID_POINTS, TABLE_COLUMNS), np.float64)
    # Of each used expert: centre, largest delta above it, a, b, entropy.
    facts = np.empty((number, 5), np.float64)
    for row in range(first, stop):
        weighting, line = kind[row], logits[row]
        used = 0
        for t in range(number):
            used += use[row, t]
        top, _, bad = cpu_moments.load(members[0, 0] + row * members[0, 1], members[0, 3], members[0, 2], line)
        if weighting == NONE or used == 0:
            continue
        if weighting == ALONE:
            for t in range(number):
                if use[row, t]:
                    if alone(members[2 + t], row, line):
                        out_alpha[row, t] = 1.0
                    else:
                        broken[row] = FIRST_EXPERT + t
                    break
            continue
        if bad:
            continue
        large = line[:common]
        if common < line.size:
            top = cpu_moments.largest(large)
        base_top, base_masked, bad = cpu_moments.load(members[1, 0] + row * members[1, 1], members[1, 3], common, base)
        if bad:
            broken[row] = BASE
            continue
        a, b = 0.0, 0.0
        for t in range(number):
            if not use[row, t] or bad:
                continue
            expert_top, masked, bad = cpu_moments.load(
                members[2 + t, 0] + row * members[2 + t, 1], members[2 + t, 3], common, expert
            )
            if bad:
                broken[row] = FIRST_EXPERT + t
            else:
                centre, highest = cpu_moments.delta_of(expert, base, large, top, deltas[t])
                facts[t, 0], facts[t, 1] = centre, highest - centre
                tops = (expert_top, base_top)
                if masked or base_masked:
                    tops = cpu_moments.joint_tops(expert, base)
                towards, back, entropy = cpu_moments.targets(expert, base, tops[0], tops[1])
                facts[t, 2], facts[t, 3], facts[t, 4] = towards, back, entropy
                a += towards / used
                b += back / used
        if bad:
            continue
        kl_target[row, 0], kl_target[row, 1] = a, b
        limit = max(alpha_max[row], np.float32(0.0))
        if weighting == KL_SAFE and top > -np.inf:
            cpu_moments.weigh(large, top, weights)
            for t in range(number):
                if use[row, t] and facts[t, 2] > 0.0:
                    problem = (large, weights, deltas[t], top, facts[t, 0])
                    found = cpu_solve.search(
                        problem, facts[t, 1], facts[t, 2], facts[t, 3], float(limit), table, blocks
                    )
                    out_alpha[row, t] = found[0] * np.sqrt(facts[t, 2] / (facts[t, 2] + facts[t, 4]))
        if weighting in (STATIC, KL_SAFE):
            total = expert
            total[:] = np.float32(0.0)
            for t in range(number):
                if use[row, t]:
                    if weighting == STATIC:
                        out_alpha[row, t] = alpha[row, t]
                    cpu_moments.add(total, deltas[t], out_alpha[row, t])
            if top > -np.inf:
                f, g = cpu_solve.at_one((large, weights, total, top, 0.0), table)
                kl_fused[row, 0], kl_fused[row, 1] = f, g
            for t in range(number):
                if use[row, t]:
                    cpu_moments.add(large, deltas[t], out_alpha[row, t])
            continue
        if top == -np.inf:
            continue
        cpu_moments.weigh(large, top, weights)
        chosen, best = -1, (0.0, np.inf, 0.0, 0.0)
        count = 0
        while count < GRID_POINTS and np.float32(count / GRID_STEPS_PER_UNIT) <= limit:
            count += 1
        for t in range(number):
            if use[row, t]:
                problem = (large, weights, deltas[t], top, facts[t, 0])
                if weighting == KL_GRID:
                    found = cpu_solve.on_grid(
                        problem, facts[t, 1], a, b, count, 1.0 / GRID_STEPS_PER_UNIT, table, blocks
                    )
                else:
                    found = cpu_solve.search(problem, facts[t, 1], a, b, float(limit), table, blocks)
                if found[1] < best[1]:
                    chosen, best = t, found
        out_alpha[row, chosen] = best[0]
        kl_fused[row, 0], kl_fused[row, 1] = best[2], best[3]
        if best[0] > 0.0:
            cpu_moments.add(large, deltas[chosen], out_alpha[row, chosen])
