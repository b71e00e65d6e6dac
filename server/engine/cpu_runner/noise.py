"""vLLM's random numbers, as functions of a request's seed, a position and a token: the same draws as its kernels'.

Gumbel noise comes from MurmurHash3's mixing steps (sample/gumbel.py), the uniform numbers of speculative verification
from Philox4x32-10 (Triton's `tl.rand`; Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

# mypy: disable-error-code="no-any-return"
import math
from typing import Any

import numpy as np

from fusion_kernels.cpu.vector import as_bits, as_float, inlined, jit

# Keeps a draft's noise apart from its verification's (sample/gumbel.py).
DRAFT_SALT = 1 << 30
_LOW_WORD = np.int64(0xFFFFFFFF)
_SMALLEST = np.float32(4.6566127342e-10)
_EPSILON = np.float32(5.960464477539063e-08)
# log(1 + f) - f + f^2 / 2, divided by f^3, on [sqrt(1/2) - 1, sqrt(2) - 1] (Cephes' logf).
_LOG = tuple(
    np.float32(c)
    for c in (
        7.0376836292e-2,
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    )
)
# ln 2 in two parts, the first exact times a small integer.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_C0, _C1, _C2, _C3, _C4, _C5, _C6, _C7, _C8 = _LOG


@inlined
def log(x: Any) -> Any:
    """log(x) of a positive, normal float32, in vector code."""
    bits = as_bits(x)
    exponent = (bits - np.int32(0x3F3504F3)) >> np.int32(23)
    f = as_float(bits - (exponent << np.int32(23))) - np.float32(1.0)
    power = np.float32(exponent)
    square = f * f
    y = _C0 * f + _C1
    y = y * f + _C2
    y = y * f + _C3
    y = y * f + _C4
    y = y * f + _C5
    y = y * f + _C6
    y = y * f + _C7
    y = y * f + _C8
    y = y * f * square + power * _LN2_LOW - np.float32(0.5) * square
    return f + y + power * _LN2_HIGH


@inlined
def _rotated(word: Any, by: int) -> Any:
    return np.uint32(np.uint32(word << np.uint32(by)) | np.uint32(word >> np.uint32(32 - by)))


@inlined
def _mixed(state: Any, word: Any) -> Any:
    word = np.uint32(word * np.uint32(0xCC9E2D51))
    word = _rotated(word, 15)
    word = np.uint32(word * np.uint32(0x1B873593))
    state = _rotated(np.uint32(state ^ word), 13)
    return np.uint32(np.uint32(state * np.uint32(5)) + np.uint32(0xE6546B64))


@inlined
def stream(seed: Any, position: Any, domain: Any) -> Any:
    """The hash's state before a token: the same for all tokens of a row. uint32."""
    state = _mixed(np.uint32(domain), np.uint32(seed & _LOW_WORD))
    state = _mixed(state, np.uint32((seed >> np.int64(32)) & _LOW_WORD))
    return _mixed(state, np.uint32(position & _LOW_WORD))


@inlined
def _hashed(state: Any, token: Any) -> Any:
    """The hash of seed, position and token. uint32."""
    h = np.uint32(_mixed(state, np.uint32(token)) ^ np.uint32(16))
    h = np.uint32(h ^ np.uint32(h >> np.uint32(16)))
    h = np.uint32(h * np.uint32(0x85EBCA6B))
    h = np.uint32(h ^ np.uint32(h >> np.uint32(13)))
    h = np.uint32(h * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ np.uint32(h >> np.uint32(16)))


@inlined
def _log1p_negative(u: Any) -> Any:
    """log(1 - u) as sample/gumbel.py computes it: a series below 1/4, else the logarithm."""
    p = np.float32(1.0 / 8.0)
    p = np.float32(1.0 / 7.0) + u * p
    p = np.float32(1.0 / 6.0) + u * p
    p = np.float32(1.0 / 5.0) + u * p
    p = np.float32(1.0 / 4.0) + u * p
    p = np.float32(1.0 / 3.0) + u * p
    p = np.float32(1.0 / 2.0) + u * p
    p = np.float32(1.0) + u * p
    direct = log(max(np.float32(1.0) - u, _EPSILON))
    return -u * p if u < np.float32(0.25) else direct


@inlined
def gumbel(state: Any, token: Any) -> Any:
    """Gumbel noise of one token, float32."""
    r = _hashed(state, token)
    high = np.float32(np.int32(r >> np.uint32(16)))
    low = np.float32(np.int32(r & np.uint32(0xFFFF)))
    u = high * np.float32(1.52587890625e-05) + (low + np.float32(0.5)) * np.float32(2.3283064365386963e-10)
    return -log(-_log1p_negative(u))


@inlined
def gumbel64(state: Any, other: Any, token: Any) -> Any:
    """Gumbel noise of one token, float64, from the streams of the domains 0 and 0x9E3779B9."""
    bits = (np.uint64(_hashed(other, token)) << np.uint64(32)) | np.uint64(_hashed(state, token))
    u = (np.float64(bits >> np.uint64(11)) + 0.5) * 1.1102230246251565e-16
    u = u - 1.1102230246251565e-16 if u == 1.0 else u
    return -math.log(-math.log(u))


@jit
def uniform(seed: Any, offset: Any) -> Any:
    """A float32 in (0, 1): `tl.rand(seed, offset)` with an int64 offset, never 0."""
    word, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    counter, key = np.uint64(offset), np.uint64(seed)
    c0, c1, c2, c3 = counter & word, counter >> half, np.uint64(0), np.uint64(0)
    k0, k1 = key & word, key >> half
    for _ in range(10):
        x, y = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (y >> half) ^ c1 ^ k0, y & word, (x >> half) ^ c3 ^ k1, x & word
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & word, (k1 + np.uint64(0xBB67AE85)) & word
    signed = np.int64(c0) - (np.int64(1) << 32 if c0 >> np.uint64(31) else 0)
    signed = -signed - 1 if signed < 0 else signed
    return max(np.float32(signed) * _SMALLEST, _SMALLEST)
