"""Threads for compiled code that releases the GIL: as many as PyTorch uses, on the cores that it uses."""

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def over_ranges(run: Callable[[int, int], None], count: int, smallest: int = 1) -> None:
    """Call `run(first, stop)` for ranges that cover 0 .. count, one per thread, none shorter than `smallest`."""
    threads = max(min(torch.get_num_threads(), count // smallest), 1)
    edges = [count * i // threads for i in range(threads + 1)]
    others = [_pool.submit(run, edges[i], edges[i + 1]) for i in range(1, threads)]
    run(edges[0], edges[1])
    for other in others:
        other.result()


def _spread() -> None:
    """Let a new thread run on every core that this process' threads use.

    It inherits the cores of the thread that made it, and OpenMP may have bound that one to a single core.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    cores: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            cores |= os.sched_getaffinity(int(thread))
    os.sched_setaffinity(0, cores)


_pool = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="fusion", initializer=_spread)
