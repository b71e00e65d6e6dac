"""From logits to a token: temperature, min-p, and the largest of the logits with Gumbel noise."""

# mypy: disable-error-code="untyped-decorator"
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_kernels.cpu.threads import over_ranges
from fusion_kernels.cpu.vector import entry, jit, ordered, unordered
from server.engine.cpu_runner.arrays import SHARE, array, for_logits, line, readable, value
from server.engine.cpu_runner.noise import DRAFT_SALT, gumbel, gumbel64, stream

# Tokens of one block: each has its own winner, vLLM takes the best of them.
BLOCK = 1024
_DOMAIN_64 = 0x9E3779B9
_LEAST = np.int32(-2147483648)


@jit
def first_of(keys: Any, length: int, top: Any) -> int:
    """The first index of `top` among keys[:length]."""
    index = 0
    for j in range(length):
        if keys[j] == top:
            index = j
            break
    return index


def gumbel_sample(
    local_argmax: Tensor,
    local_max: Tensor,
    logits_cache: Tensor | None,
    logits_cache_col: Tensor | None,
    logits_cache_source: Tensor | None,
    logits: Tensor,
    expanded_idx_mapping: Tensor,
    seeds: Tensor,
    pos: Tensor,
    temp: Tensor,
    vocab_size: int,
    is_drafting: bool,
    apply_temperature: bool,
    use_fp64: bool,
    per_token_col: bool,
) -> None:
    """sample.gumbel._gumbel_sample_kernel: for each block of 1,024 tokens, the largest logit with Gumbel noise.

    At temperature 0, and in rows without a request, without noise. NaN is least.

    Args:
        local_argmax: [rows, blocks] int64, a result.
        local_max: [rows, blocks] float32, with `use_fp64` float64, a result.
        logits_cache: [slots, columns, >= V], takes the rows of `logits_cache_source` [rows, V], or None.
        logits_cache_col: the column, one for all or int [rows] with `per_token_col`.
        logits: [rows, V].
        expanded_idx_mapping: [rows] int64, slots; -1 is no request.
        seeds, temp: [slots] int64, [slots] float32.
        pos: [rows] int64.
        vocab_size: V.
        is_drafting: the noise of drafts, not of their verification.
        apply_temperature: divide the logits by it first.
        use_fp64: noise in float64.
    """
    if logits_cache is not None:
        assert logits_cache_col is not None
        assert logits_cache_source is not None
        real = expanded_idx_mapping >= 0
        column = logits_cache_col[real] if per_token_col else logits_cache_col
        logits_cache[expanded_idx_mapping[real], column, :vocab_size] = logits_cache_source[real, :vocab_size]
    choose(
        local_argmax, local_max, logits[:, :vocab_size], expanded_idx_mapping, seeds, pos, temp, is_drafting,
        apply_temperature, use_fp64,
    )  # fmt: skip


def choose(
    winners: Tensor, tops: Tensor, logits: Tensor, rows: Tensor, seeds: Tensor, positions: Tensor, temperatures: Tensor,
    drafting: bool, divide: bool, doubled: bool,
) -> None:  # fmt: skip
    """`gumbel_sample` without its cache; the blocks of all rows are shared among threads."""
    parts = [array(part) for part in (winners, tops)]
    rest = [array(part) for part in (rows, seeds, positions, temperatures)]
    source = readable(logits)
    function = block_winners_64 if doubled else block_winners

    def run(first: int, stop: int) -> None:
        function(first, stop, *parts, source, *rest, DRAFT_SALT if drafting else 0, divide)

    over_ranges(run, winners.numel(), SHARE // BLOCK)


@for_logits(
    "void(int64, int64, int64[:,:], float32[:,:], logits, int64[:], int64[:], int64[:], float32[:], int64, boolean)"
)
def block_winners(
    first: int, stop: int, winners: Any, tops: Any, logits: Any, slots: Any, seeds: Any, positions: Any, temps: Any,
    salt: int, divide: bool,
) -> None:  # fmt: skip
    """Blocks first .. stop, counted through all rows, with float32 noise."""
    keys = np.empty(BLOCK, np.int32)
    blocks, vocabulary = winners.shape[1], logits.shape[1]
    for unit in range(first, stop):
        row, block = unit // blocks, unit % blocks
        start = block * BLOCK
        length = min(BLOCK, vocabulary - start)
        slot = slots[row]
        temperature = temps[slot] if slot >= 0 else np.float32(0.0)
        entries = line(logits, row)
        top = _LEAST
        if temperature == 0.0:
            for j in range(length):
                x = value(entries, start + j)
                keys[j] = ordered(x) if x == x else _LEAST
                top = max(top, keys[j])
        else:
            state = stream(seeds[slot], positions[row] + salt, 0)
            scale = temperature if divide else np.float32(1.0)
            for j in range(length):
                x = value(entries, start + j) / scale + gumbel(state, start + j)
                keys[j] = ordered(x) if x == x else _LEAST
                top = max(top, keys[j])
        winners[row, block] = start + first_of(keys, length, top)
        tops[row, block] = unordered(top) if top != _LEAST else -np.inf


@entry
def block_winners_64(
    first: int, stop: int, winners: Any, tops: Any, logits: Any, slots: Any, seeds: Any, positions: Any, temps: Any,
    salt: int, divide: bool,
) -> None:  # fmt: skip
    """Blocks first .. stop, counted through all rows, with float64 noise: compiled at its first use, for few use it."""
    blocks, vocabulary = winners.shape[1], logits.shape[1]
    for unit in range(first, stop):
        row, block = unit // blocks, unit % blocks
        start = block * BLOCK
        slot = slots[row]
        temperature = temps[slot] if slot >= 0 else np.float32(0.0)
        entries = line(logits, row)
        scale = temperature if divide and temperature != 0.0 else np.float32(1.0)
        seed = seeds[max(slot, 0)]
        state = stream(seed, positions[row] + salt, 0)
        other = stream(seed, positions[row] + salt, _DOMAIN_64)
        winner, top = start, -np.inf
        for token in range(start, min(start + BLOCK, vocabulary)):
            x = np.float64(value(entries, token) / scale)
            if temperature != 0.0:
                x += gumbel64(state, other, token)
            if x > top:
                winner, top = token, x
        winners[row, block], tops[row, block] = winner, top


def temperature(logits: Tensor, expanded_idx_mapping: Tensor, temperature: Tensor) -> None:
    """sample.gumbel._temperature_kernel: divide each row by its temperature, unless that is 0.

    Args:
        logits: [rows, V], changed in place.
        expanded_idx_mapping: [rows] int64, slots.
        temperature: [slots] float32.
    """
    divisor = temperature[expanded_idx_mapping]
    logits.div_(torch.where(divisor == 0, 1.0, divisor).unsqueeze(1))


def min_p(logits: Tensor, expanded_idx_mapping: Tensor, min_p: Tensor) -> None:
    """sample.min_p._min_p_kernel: -inf for tokens less likely than `min_p` times the likeliest.

    Args:
        logits: [rows, V] float32, changed in place.
        expanded_idx_mapping: [rows] int64, slots.
        min_p: [slots] float32; 0 keeps all.
    """
    least = logits.amax(-1, keepdim=True) + min_p[expanded_idx_mapping].log().unsqueeze(1)
    logits.masked_fill_(logits < least, -math.inf)
