"""Tensors as numba sees them."""

# mypy: disable-error-code="no-any-return, untyped-decorator"
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import carray, types
from numba.extending import overload
from torch import Tensor

from fusion_kernels.cpu.vector import Jitted, as_float, entry, inlined, pointer

# Logits come in the model's dtype (bfloat16 as its bits) or, once a request's settings were applied, in float32.
LOGITS = ("float32[:,:]", "int16[:,:]")
# Logits that are worth a thread: to fewer of them it takes longer to start one.
SHARE = 1 << 15


def compiled(*signatures: str) -> Callable[[Jitted], Jitted]:
    """Compile for these argument types, when the module is imported; others are refused.

    Arrays are declared without a layout (`int32[:]`): slices of larger ones then need no compilation of their own.
    """
    return lambda function: entry(function, signatures)


def for_logits(signature: str) -> Callable[[Jitted], Jitted]:
    """`compiled` once for each dtype of logits, which the signature calls `logits`."""
    return compiled(*(signature.replace("logits", kind) for kind in LOGITS))


def array(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as an array; bfloat16 as int16, its bits."""
    return tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def readable(logits: Tensor) -> np.ndarray:
    """`array`; of a dtype that the compiled functions do not read (float16), a float32 copy."""
    return array(logits if logits.dtype in (torch.float32, torch.bfloat16) else logits.float())


@inlined
def line(matrix: Any, row: int) -> Any:
    """A row as a contiguous array, which LLVM can turn into vector code; the columns must be adjacent."""
    return carray(pointer(matrix.ctypes.data + row * matrix.strides[0]), (matrix.shape[1],), matrix.dtype)


@inlined
def integers(address: int, length: int) -> Any:
    """int32 [length] at `address`."""
    return carray(pointer(address), (length,), np.int32)


@inlined
def bytes_at(address: int, length: int) -> Any:
    """uint8 [length] at `address`."""
    return carray(pointer(address), (length,), np.uint8)


def value(logits: Any, i: Any) -> Any:
    """Element i as a float32; int16 arrays hold bfloat16."""


@overload(value, inline="always", strict=False)
def _value(logits: Any, i: Any) -> Any:
    if logits.dtype == types.int16:
        return lambda logits, i: as_float(np.int32(logits[i]) << np.int32(16))
    return lambda logits, i: np.float32(logits[i])
