"""Putting the functions in place, in every process that vLLM starts."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch

from server.engine.cpu_runner.table import KERNELS, UNSUPPORTED

_WORKER = "vllm.v1.worker."


def register() -> None:
    """Let vLLM's Model Runner V2 run on this CPU.

    Nothing happens elsewhere, nor unless that runner is asked for (VLLM_USE_V2_MODEL_RUNNER=1), nor where vLLM has
    Triton. Kernels that vLLM has a function for, or has no more, are left alone.
    """
    import vllm.envs as envs
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON

    if HAS_TRITON or not current_platform.is_cpu() or not envs.VLLM_USE_V2_MODEL_RUNNER:
        return
    import vllm.config.vllm as config

    # It replaces functions that the runner's modules import by name; vLLM's CPU worker, too, imports it first.
    import vllm.v1.worker.cpu.shm
    from vllm.triton_utils import triton
    from vllm.triton_utils.dispatcher import KernelOverride, register_kernels
    from vllm.utils.math_utils import next_power_of_2

    # vLLM 0.32's configuration refuses Model Runner V2 without it. No other module reads this one's name.
    config.HAS_TRITON = True  # type: ignore[attr-defined]
    # The runner's own Python calls it; vLLM's stand-in for the module `triton` lacks it.
    if not hasattr(triton, "next_power_of_2"):
        triton.next_power_of_2 = next_power_of_2
    _let_llvmlite_be_looked_into()
    functions: dict[str, Callable[..., Any]] = {}
    for name in [*KERNELS, *UNSUPPORTED]:
        kernel = find_kernel(name)
        if kernel is None or isinstance(kernel, KernelOverride):
            continue
        functions[_WORKER + name] = StandIn(kernel, KERNELS[name]) if name in KERNELS else refusal(UNSUPPORTED[name])
    register_kernels(functions)


def warm_up(speculation: bool = False) -> None:
    """Compile the functions, or read their machine code from the disk; without it the first launch does so.

    Args:
        speculation: also those that only speculation launches.
    """
    for kernel, target in KERNELS.items():
        if speculation or ".spec_decode." not in kernel:
            _function(target)
    _let_llvmlite_be_looked_into()


def find_kernel(name: str) -> Callable[..., Any] | None:
    """The kernel by its name in `table`; None where this vLLM has no such kernel."""
    module, attribute = (_WORKER + name).rsplit(".", 1)
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError:
        return None


class StandIn:
    """Takes a kernel's launches and calls the function of this folder with those of the arguments that it wants.

    They are found by name: `logits_ptr` of the kernel is the function's `logits`, `BLOCK_SIZE` would be `block_size`.
    numba and the functions are imported at the first launch, so that a process without launches does without them.
    """

    def __init__(self, kernel: Callable[..., Any], target: str) -> None:
        self.__name__ = target
        self._target = target
        self.arguments = plain_names(inspect.signature(kernel).parameters)
        self._function: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **constants: Any) -> None:
        """Take what Triton's launch gives: arguments in the kernel's order, its constants and Triton's by name.

        Raises:
            RuntimeError: the function wants an argument that the kernel does not have.
            TypeError: an argument has another type than in vLLM 0.32.
        """
        if self._function is None:
            self._function = self._load()
        values = dict(zip(self.arguments, args, strict=False))
        values.update(zip(plain_names(constants), constants.values(), strict=True))
        self._function(*self._prepared(values))

    def _load(self) -> Callable[..., Any]:
        from server.engine.cpu_runner.arrays import array

        warm_up()
        function = _function(self._target)
        _let_llvmlite_be_looked_into()
        self._ours = list(inspect.signature(getattr(function, "py_func", function)).parameters)
        unknown = [name for name in self._ours if name not in self.arguments]
        if unknown:
            raise RuntimeError(f"{self._target} stands for a kernel of vLLM 0.32; this vLLM's has no {unknown}")
        # A compiled function takes numpy's arrays.
        self._seen = array if hasattr(function, "py_func") else None
        return function

    def _prepared(self, values: dict[str, Any]) -> list[Any]:
        wanted = [values[name] for name in self._ours]
        if self._seen is None:
            return wanted
        return [self._seen(value) if isinstance(value, torch.Tensor) else value for value in wanted]


def plain_names(names: Iterable[str]) -> list[str]:
    """Arguments of a kernel without Triton's marks: `logits_ptr` is `logits`, `BLOCK_SIZE` is `block_size`."""
    return [name.removesuffix("_ptr").lower() for name in names]


def _function(target: str) -> Callable[..., Any]:
    module, name = target.split(".")
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)  # type: ignore[no-any-return]


def refusal(feature: str) -> Callable[..., NoReturn]:
    """What takes the launches of a kernel that nothing stands for: an error that names the feature."""

    def refuse(*args: Any, **constants: Any) -> NoReturn:
        raise NotImplementedError(f"{feature} is not supported by Model Runner V2 on CPUs")

    return refuse


def _let_llvmlite_be_looked_into() -> None:
    """Keep vLLM 0.32's `register_kernels` from failing once numba is imported, also when vLLM calls it by itself.

    It calls `vars(x).get` for every object x of every module. The wrapper that llvmlite 0.47 has around its library
    owns no dictionary and answers every name with a function of the library: "'_lib_fn_wrapper' object has no
    attribute 'get'".
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab.setdefault("__dict__", {})
