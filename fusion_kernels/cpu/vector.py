"""Scalar building blocks for numba loops that LLVM turns into vector code: bit casts, exp, ordered keys, raw arrays."""

# mypy: disable-error-code="untyped-decorator"
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, config, njit, types
from numba.extending import intrinsic

# Reassociation lets LLVM vectorise sums. NaN and infinity keep their meaning: the kernels test for them.
OPTIONS = {"fastmath": {"reassoc", "contract", "arcp", "nsz"}, "nogil": True, "error_model": "numpy"}

Jitted = Callable[..., Any]


def jit(function: Jitted) -> Jitted:
    """Compile, without the GIL, as part of whatever calls it."""
    return njit(**OPTIONS)(function)  # type: ignore[no-any-return]


def inlined(function: Jitted) -> Jitted:
    """Compile into the loops of the caller."""
    return njit(inline="always", **OPTIONS)(function)  # type: ignore[no-any-return]


def entry(function: Jitted, signatures: Sequence[str] | None = None) -> Jitted:
    """Compile what Python calls, and keep the machine code on disk where that is possible.

    With `signatures` it is compiled for these types at once, and refuses others; without, for each new combination of
    types at the first call with it.

    numba's own cache looks only at the file that holds the function, and would run stale code after a change in another
    file that the function calls. So the folder is named after the contents of the function's package and of
    `fusion_kernels`, both with all that is below them.
    """
    types = [] if signatures is None else [list(signatures)]
    folder = _cache_folder(Path(function.__code__.co_filename).parent)
    if folder is None:
        return njit(*types, **OPTIONS)(function)  # type: ignore[no-any-return]
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:
        return njit(*types, cache=True, **OPTIONS)(function)  # type: ignore[no-any-return]
    finally:
        config.CACHE_DIR = before


@lru_cache
def _cache_folder(package: Path) -> Path | None:
    """The first writable of NUMBA_CACHE_DIR, this package and the user's cache; None where all are read-only."""
    packages = sorted({package, Path(__file__).parents[1]})
    files = [file.read_bytes() for folder in packages for file in sorted(folder.rglob("*.py"))]
    digest = hashlib.sha256(b"".join(files)).hexdigest()[:16]
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    for parent in ([Path(config.CACHE_DIR)] if config.CACHE_DIR else []) + [
        package / "__pycache__",
        user / "logit-fusion",
    ]:
        try:
            (parent / digest).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=parent / digest).close()
        except OSError:
            continue
        return parent / digest
    return None


@intrinsic
def as_float(typing: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), code


@intrinsic
def as_bits(typing: Any, value: Any) -> Any:
    """The 32 bits of a float32, as an int32."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), code


@intrinsic
def nearest(typing: Any, value: Any) -> Any:
    """The nearest whole number, as a float32."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [ir.FloatType()]), args)

    return types.float32(types.float32), code


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    """The int64 `address` as an untyped pointer."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), code


@inlined
def floats(address: int, length: int) -> Any:
    """float32 [length] at `address`."""
    return carray(pointer(address), (length,), np.float32)


@inlined
def halves(address: int, length: int) -> Any:
    """uint16 [length] at `address`, the bits of bfloat16 numbers."""
    return carray(pointer(address), (length,), np.uint16)


_LOG2_E = np.float32(1.4426950408889634)
_LOWEST = np.float32(-87.3)
_HIGHEST = np.float32(88.3)
# 2^r on [-0.5, 0.5], least largest relative error (9e-8), exactly 1 at 0.
_C1 = np.float32(0.6931470036506653)
_C2 = np.float32(0.24022242426872253)
_C3 = np.float32(0.05550733581185341)
_C4 = np.float32(0.009671512991189957)
_C5 = np.float32(0.0013264723820611835)


@inlined
def exp(x: Any) -> Any:
    """exp(x) in float32, kept within [e^-87.3, e^88.3]: vector code has no cheaper way to treat the far ends."""
    inside = min(max(x, _LOWEST), _HIGHEST)
    whole = nearest(inside * _LOG2_E)
    r = inside * _LOG2_E - whole
    power = _C5 * r + _C4
    power = power * r + _C3
    power = power * r + _C2
    power = power * r + _C1
    power = power * r + np.float32(1.0)
    return power * as_float((np.int32(whole) + np.int32(127)) << np.int32(23))


@inlined
def ordered(value: Any) -> Any:
    """An int32 that orders as the float32 does; LLVM vectorises the largest of ints, not that of floats with NaN."""
    bits = as_bits(value)
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@inlined
def unordered(key: Any) -> Any:
    """The float32 of an `ordered` key."""
    return as_float(key ^ ((key >> np.int32(31)) & np.int32(0x7FFFFFFF)))
