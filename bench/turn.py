"""A client that shares its machine with the server that it measures."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress


def go_first() -> None:
    """Let the calling thread run as soon as it can, before any server's, where the system lets it.

    vLLM's processes spin while they wait for each other, and on two cores a client beside them waited for its turn for
    5.6 of 6.9 seconds: what it then timed was the kernel's scheduler. Processes and threads that are started later run
    as usual. Without the right (`CAP_SYS_NICE`), or on another system than Linux, nothing changes.
    """
    with suppress(AttributeError, PermissionError):
        _remember_the_usual_turn()
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def go_as_usual() -> None:
    """Take the calling thread's right to go first back."""
    with suppress(AttributeError, PermissionError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _remember_the_usual_turn() -> None:
    """Have the C library note this thread's policy, which it hands to threads that are started later.

    It notes it when it is first asked. Asked after the change, it would hand on a policy that the kernel refuses, and
    ZeroMQ, which sets what it was handed, aborts the process.
    """
    libc = ctypes.CDLL(None)
    libc.pthread_self.restype = ctypes.c_void_p
    policy, priority = ctypes.c_int(), ctypes.c_int()
    libc.pthread_getschedparam(ctypes.c_void_p(libc.pthread_self()), ctypes.byref(policy), ctypes.byref(priority))
