"""vLLM's plugin hook, called in every process that vLLM starts: what each of them needs to know."""

import atexit
import ctypes
import gc
import multiprocessing
import os
import signal
import sys

from server.engine import cpu_runner

ARCHITECTURE = "LogitFusionForCausalLM"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def register() -> None:
    """Register the composite model and, on CPUs, Model Runner V2's functions; let engine processes end as they should.

    vLLM calls it by the entry point group `vllm.general_plugins`.
    """
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "server.engine.composite:LogitFusionForCausalLM")
    cpu_runner.register()
    _end_with_parent()
    _end_quickly()


def _end_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies.

    vLLM 0.32's engine does not notice that its server was killed, and would hold the device's memory for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent.pid:  # it died before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


def _end_quickly() -> None:
    """Spare an engine process the garbage collections of its last moments.

    Nearly a million objects of Torch, Transformers and vLLM are searched several times over: 2 to 3 s on a fast
    machine. vLLM 0.32 gives a worker 5 s, then kills it.
    """
    if multiprocessing.parent_process() is not None:
        atexit.register(gc.freeze)
