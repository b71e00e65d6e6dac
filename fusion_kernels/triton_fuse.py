"""The fusion on a GPU: one Triton kernel, one program per row, no copies to the host.

A program fills its multiprocessor, and each of its passes reads the row again: 3 x 32,000 bfloat16 logits are 192 KB,
which the 256 KB of L1 cache and shared memory of a Hopper multiprocessor hold from the first pass on; longer rows come
from the L2 cache. The steps are those of `solver`, with sums in float32.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: N803  (Triton writes compile-time arguments in capitals)

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusion_kernels.triton_moments import INF, at, broken, delta_of, finish, first_state, load, scan, span
from fusion_kernels.triton_solve import on_grid, search
from fusion_kernels.weighting import BASE, FIRST_EXPERT, Fused, Weighting

# Ids per step of a pass: four per thread, so that 27 running sums in each lane still fit in its registers.
BLOCK_IDS = 2048
WARPS = 16
ALIGNMENT = 16

NONE = tl.constexpr(int(Weighting.NONE))
STATIC = tl.constexpr(int(Weighting.STATIC))
KL_GRID = tl.constexpr(int(Weighting.KL_GRID))
KL_SAFE = tl.constexpr(int(Weighting.KL_SAFE))
ALONE = tl.constexpr(int(Weighting.ALONE))
BROKEN_BASE = tl.constexpr(BASE)
BROKEN_EXPERT = tl.constexpr(FIRST_EXPERT)


@triton.jit
def _expert(experts, strides, program, t, ALIGNED: tl.constexpr):
    """The row of expert t, chosen at run time: unrolled over the experts, the kernel would be T times as long."""
    row = experts[0] + program * strides[2]
    if len(experts) > 1:
        address = row.to(tl.int64)
        for i in tl.static_range(1, len(experts)):
            address = tl.where(t == i, (experts[i] + program * strides[2 + i]).to(tl.int64), address)
        row = address.to(tl.pointer_type(experts[0].dtype.element_ty))
        if ALIGNED:
            row = tl.multiple_of(row, 16)
    return row


@triton.jit
def _copy_alone(out, expert, length, vocabulary, BLOCK: tl.constexpr):
    """Write an expert's own logits, -inf past its length; 1, and nothing written, when they are broken."""
    bad = tl.full((), 0, tl.int32)
    for start in tl.range(0, vocabulary, BLOCK):
        bad |= broken(load(expert, start + tl.arange(0, BLOCK), tl.minimum(length, vocabulary)))
    if bad == 0:
        for start in tl.range(0, vocabulary, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            tl.store(out + ids, load(expert, ids, length), mask=ids < vocabulary)
    return bad


@triton.jit
def _static(out, problem, top, BLOCK: tl.constexpr):
    """f and g of the fused logits at `out`, for a row whose weights several experts may have."""
    large, _, _, common, _, _ = problem
    fused_top = tl.full((), -INF, tl.float32)
    for start in tl.range(0, common, BLOCK):
        fused_top = tl.maximum(fused_top, tl.max(load(out, start + tl.arange(0, BLOCK), common), 0))
    p, fused, p_mean, fused_mean = (tl.zeros([BLOCK], tl.float32),) * 4
    for start in tl.range(0, common, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        before, after = load(large, ids, common) - top, load(out, ids, common) - fused_top
        ratio = tl.where(before > -INF, after - before, 0.0)
        p += tl.exp(before)
        fused += tl.exp(after)
        p_mean += tl.exp(before) * ratio
        fused_mean += tl.exp(after) * ratio
    p_sum, fused_sum = tl.sum(p, 0), tl.sum(fused, 0)
    gain = tl.log(fused_sum / p_sum)
    f, g = tl.sum(fused_mean, 0) / fused_sum - gain, gain - tl.sum(p_mean, 0) / p_sum
    return tl.maximum(f, 0.0), tl.maximum(g, 0.0)


@triton.jit
def fuse_kernel(
    logits,  # [B, V] float32, out
    out_alpha,  # [B, T] float32, out
    kl_target,  # [B, 2] float32, out
    kl_fused,  # [B, 2] float32, out
    broken_member,  # [B] int8, out
    large,  # [B, V] any float
    base,  # [B, V_b] any float
    experts,  # T pointers to [B, V_t] of one float type
    strides,  # 2 + T: elements per row of large, base and experts
    lengths,  # T: V_t
    kind,  # [B] int8
    use,  # [B, T] int8
    alpha,  # [B, T] float32
    alpha_max,  # [B] float32
    vocabulary,  # V
    common,  # V_c
    COLUMNS: tl.constexpr,  # T rounded up to a power of two
    ALIGNED: tl.constexpr,  # every expert row starts at a multiple of 16 bytes
    BLOCK: tl.constexpr,  # ids per step of a pass
):
    """One row: read what its kind needs, choose the weights, write the fused logits; see `fuse_logits`."""
    program = tl.program_id(0).to(tl.int64)
    number: tl.constexpr = len(experts)
    weighting, limit = tl.load(kind + program), tl.maximum(tl.load(alpha_max + program), 0.0)
    columns = tl.arange(0, COLUMNS)
    inside = columns < number
    used = tl.load(use + program * number + columns, mask=inside, other=0).to(tl.int32)
    count = tl.sum(used, 0)
    out = logits + program * vocabulary
    large_row, base_row = large + program * strides[0], base + program * strides[1]

    zero, low = tl.full((), 0.0, tl.float32), tl.full((), -INF, tl.float32)
    chosen = tl.zeros([COLUMNS], tl.float32)
    own_a, own_b, entropies = chosen, chosen, chosen
    a, b, f, g = zero, zero, zero, zero
    bad, copied = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    top, moved = low, tl.full((), 0, tl.int32)

    if (weighting == ALONE) & (count > 0):
        first = tl.argmax(used, 0)
        length = 0
        for i in tl.static_range(number):
            length = tl.where(first == i, lengths[i], length)
        bad = _copy_alone(out, _expert(experts, strides, program, first, ALIGNED), length, vocabulary, BLOCK)
        copied = 1 - bad
        bad = bad * (first + BROKEN_EXPERT)
        chosen = tl.where((columns == first) & (bad == 0), 1.0, chosen)
    elif (weighting != NONE) & (count > 0):
        large_bad = tl.full((), 0, tl.int32)
        for start in tl.range(0, vocabulary, BLOCK):
            large_bad |= broken(load(large_row, start + tl.arange(0, BLOCK), vocabulary))
        if large_bad == 0:
            for t in tl.range(0, number):
                if at(used, t) > 0:
                    expert_row = _expert(experts, strides, program, t, ALIGNED)
                    state = first_state()
                    for start in tl.range(0, common, BLOCK):
                        ids = start + tl.arange(0, BLOCK)
                        from_base, from_expert = load(base_row, ids, common), load(expert_row, ids, common)
                        state = scan(load(large_row, ids, common), from_base, from_expert, state)
                    towards, back, entropy = finish(state)
                    own_a = tl.where(columns == t, towards, own_a)
                    own_b = tl.where(columns == t, back, own_b)
                    entropies = tl.where(columns == t, entropy, entropies)
                    a += towards / count
                    b += back / count
                    if bad == 0:
                        bad = tl.where(state[9] == 1, t + BROKEN_EXPERT, tl.where(state[9] > 1, BROKEN_BASE, 0))
                    top = state[0]
            a, b = tl.where(bad == 0, a, 0.0), tl.where(bad == 0, b, 0.0)
            if bad == 0:
                moved += 1
                if weighting == STATIC:
                    chosen = tl.load(alpha + program * number + columns, mask=inside & (used > 0), other=0.0)
                elif top > -INF:
                    least = tl.full((), INF, tl.float32)
                    for t in tl.range(0, number):
                        if at(used, t) > 0:
                            expert_row = _expert(experts, strides, program, t, ALIGNED)
                            centre, reach = span((large_row, base_row, expert_row, common, zero, zero), top, BLOCK)
                            problem = (large_row, base_row, expert_row, common, top, centre)
                            best = (zero, zero, zero, zero)
                            if weighting == KL_GRID:
                                best = on_grid(problem, reach, a, b, limit, BLOCK)
                            elif weighting == KL_SAFE:
                                learned, entropy = at(own_a, t), at(entropies, t)
                                best = search(problem, reach, learned, at(own_b, t), limit, BLOCK)
                                kept = tl.sqrt(
                                    tl.where(learned > 0, learned / tl.maximum(learned + entropy, 1e-30), 0.0)
                                )
                                chosen = tl.where(columns == t, best[0] * kept, chosen)
                            else:
                                best = search(problem, reach, a, b, limit, BLOCK)
                            if (weighting != KL_SAFE) & (best[1] < least):
                                least = best[1]
                                chosen = tl.where(columns == t, best[0], 0.0)
                                f, g = best[2], best[3]
    if copied == 0:
        for start in tl.range(0, vocabulary, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            fused = load(large_row, ids, vocabulary)
            for t in tl.range(0, number):
                weight = at(chosen, t)
                if weight != 0:
                    expert_row = _expert(experts, strides, program, t, ALIGNED)
                    fused += weight * delta_of(load(base_row, ids, common), load(expert_row, ids, common))
            tl.store(out + ids, fused, mask=ids < vocabulary)
    if ((weighting == STATIC) | (weighting == KL_SAFE)) & (moved > 0) & (top > -INF):
        tl.debug_barrier()
        f, g = _static(out, (large_row, base_row, base_row, common, zero, zero), top, BLOCK)
    tl.store(out_alpha + program * number + columns, chosen, mask=inside)
    tl.store(kl_target + 2 * program, a)
    tl.store(kl_target + 2 * program + 1, b)
    tl.store(kl_fused + 2 * program, f)
    tl.store(kl_fused + 2 * program + 1, g)
    tl.store(broken_member + program, bad.to(tl.int8))


def fuse(
    large: Tensor, base: Tensor, experts: list[Tensor], kind: Tensor, use: Tensor, alpha: Tensor, alpha_max: Tensor
) -> Fused:
    """`fuse_logits` in one launch, without a copy to the host."""
    rows, number = use.shape
    if len({expert.dtype for expert in experts}) > 1:
        experts = [expert.float() for expert in experts]
    members = [member if member.stride(1) == 1 else member.contiguous() for member in [large, base, *experts]]
    device = large.device
    out = Fused(
        logits=torch.empty(large.shape, dtype=torch.float32, device=device),
        alpha=torch.empty(rows, number, dtype=torch.float32, device=device),
        kl_target=torch.empty(rows, 2, dtype=torch.float32, device=device),
        kl_fused=torch.empty(rows, 2, dtype=torch.float32, device=device),
        broken=torch.empty(rows, dtype=torch.int8, device=device),
    )
    if rows == 0:
        return out
    fuse_kernel[(rows,)](
        *out,
        *members[:2],
        tuple(members[2:]),
        tuple(member.stride(0) for member in members),
        tuple(expert.shape[1] for expert in experts),
        kind.contiguous(),
        use.contiguous().view(torch.int8),
        alpha.contiguous(),
        alpha_max.contiguous(),
        large.shape[1],
        min(member.shape[1] for member in members),
        COLUMNS=triton.next_power_of_2(number),
        ALIGNED=all(_aligned(member) for member in members[2:]),
        BLOCK=BLOCK_IDS,
        num_warps=WARPS,
    )
    return out


def _aligned(member: Tensor) -> bool:
    """Whether every row starts at a multiple of `ALIGNMENT` bytes, which wide loads need."""
    return member.data_ptr() % ALIGNMENT == 0 and member.stride(0) * member.element_size() % ALIGNMENT == 0
