"""vLLM's plugin hook, called in every process that vLLM starts: what each of them needs to know."""

import atexit
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
from multiprocessing import util

from server.engine import cpu_runner

ARCHITECTURE = "LogitFusionForCausalLM"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Of multiprocessing's finalizers, those below 0 run after the process' children have ended; the highest first.
_LAST = -1000


def register() -> None:
    """Register the composite model and, on CPUs, Model Runner V2's functions; let engine processes end as they should.

    vLLM calls it by the entry point group `vllm.general_plugins`.
    """
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from server.engine.member_config import LargeConfig

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "server.engine.composite:LogitFusionForCausalLM")
    MODELS_CONFIG_MAP[ARCHITECTURE] = LargeConfig
    cpu_runner.register()
    if multiprocessing.parent_process() is not None:
        _tell_failures()
        _end_with_parent()
        _end_quickly()


def _tell_failures() -> None:
    """Let the server know why an engine does not start."""
    from server.engine.phases import Failures

    logger = logging.getLogger("vllm")
    if not any(isinstance(handler, Failures) for handler in logger.handlers):
        logger.addHandler(Failures(logging.ERROR))


def _end_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies.

    vLLM 0.32's engine does not notice that its server was killed, and would hold the device's memory for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent.pid:  # it died before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


def _end_quickly() -> None:
    """Let an engine process that has shut itself down end there and then.

    The interpreter would first search nearly a million objects of Torch, Transformers and vLLM for garbage, several
    times over: 2 to 3 s on a fast machine. vLLM 0.32 gives a worker 5 s, then kills it.
    """
    util.Finalize(None, _leave_if_clean, exitpriority=_LAST)


def _leave_if_clean() -> None:
    """Called when the process' function has returned or raised, and its own children have ended."""
    error = sys.exc_info()[1]
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
