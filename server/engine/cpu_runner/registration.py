"""Putting the functions in place, in every process that vLLM starts."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from server.engine.cpu_runner.table import KERNELS

_RUNNER = "vllm.v1.worker.gpu."


def register() -> None:
    """Let vLLM's Model Runner V2 run on this CPU; nothing elsewhere, and nothing unless that runner was asked for.

    Raises:
        RuntimeError: a kernel's arguments are not those of vLLM 0.32.
    """
    import vllm.envs as envs
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON

    if HAS_TRITON or not current_platform.is_cpu() or not envs.VLLM_USE_V2_MODEL_RUNNER:
        return
    # vLLM's CPU worker imports it "firstly": it replaces functions that the runner's modules import by name.
    import vllm.config.vllm as config
    import vllm.v1.worker.cpu.shm
    from vllm.triton_utils import triton
    from vllm.triton_utils.dispatcher import KernelOverride, register_kernels
    from vllm.utils.math_utils import next_power_of_2

    # Asked by vLLM 0.32's configuration before it allows Model Runner V2 (config/vllm.py), and for nothing else.
    config.HAS_TRITON = True  # type: ignore[attr-defined]
    # The runner's host code calls it; vLLM's stand-in for the module `triton` lacks it.
    if not hasattr(triton, "next_power_of_2"):
        triton.next_power_of_2 = next_power_of_2
    _let_llvmlite_be_looked_into()
    missing = {}
    for name, place in KERNELS.items():
        module, attribute = (_RUNNER + name).rsplit(".", 1)
        kernel = getattr(importlib.import_module(module), attribute, None)
        if kernel is not None and not isinstance(kernel, KernelOverride):
            missing[_RUNNER + name] = StandIn(kernel, place)
    register_kernels(missing)


def warm_up() -> None:
    """Compile all functions, or read their machine code from the disk: seconds in the first case."""
    for place in KERNELS.values():
        _function(place)


class StandIn:
    """Takes a kernel's launches: arguments in the kernel's order, constants by name.

    numba and the functions are imported at the first launch, so that a process that launches nothing pays nothing.
    """

    def __init__(self, kernel: Callable[..., Any], place: str) -> None:
        self.__name__ = place
        self._theirs = [_plain(name) for name in inspect.signature(kernel).parameters]
        self._place = place
        self._function: Callable[..., Any] | None = None
        self._ours: Sequence[str] = ()
        self._compiled = False

    def __call__(self, *args: Any, **constants: Any) -> None:
        """Run the function; a compiled one gets numpy's views of the tensors."""
        if self._function is None:
            self._load()
        values = dict(zip(self._theirs, args, strict=False))
        for name, value in constants.items():
            values[_plain(name)] = value
        wanted = [values[name] for name in self._ours]
        if self._compiled:
            from server.engine.cpu_runner.arrays import array

            wanted = [array(value) if isinstance(value, torch.Tensor) else value for value in wanted]
        self._function(*wanted)  # type: ignore[misc]

    def _load(self) -> None:
        warm_up()
        _let_llvmlite_be_looked_into()
        function = _function(self._place)
        self._compiled = hasattr(function, "py_func")
        self._ours = list(inspect.signature(getattr(function, "py_func", function)).parameters)
        unknown = [name for name in self._ours if name not in self._theirs]
        if unknown:
            raise RuntimeError(f"the kernel behind {self._place} has no arguments {unknown}: not vLLM 0.32's")
        self._function = function


def _function(place: str) -> Callable[..., Any]:
    module, name = place.split(".")
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)  # type: ignore[no-any-return]


def _plain(name: str) -> str:
    """A kernel's argument name without Triton's marks: `logits_ptr` is `logits`, `BLOCK_SIZE` is `block_size`."""
    return name.removesuffix("_ptr").lower()


def _let_llvmlite_be_looked_into() -> None:
    """Keep `register_kernels` from failing where numba is imported.

    It calls `vars(x).get` for every object x of every module. llvmlite 0.47's wrapper of its library has no dictionary
    and answers every name with a function of the library: `'_lib_fn_wrapper' object has no attribute 'get'`.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab.setdefault("__dict__", {})
