"""A client that shares its machine with the server that it measures."""

from __future__ import annotations

import os
from contextlib import suppress


def go_first() -> None:
    """Let the calling thread run as soon as it can, before any server's, where the system lets it.

    vLLM's processes spin while they wait for each other, and on two cores a client beside them waited for its turn for
    5.6 of 6.9 seconds: what it then timed was the kernel's scheduler. Processes and threads that are started later run
    as usual. Without the right (`CAP_SYS_NICE`), or on another system than Linux, nothing changes.
    """
    with suppress(AttributeError, PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
