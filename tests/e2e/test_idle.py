"""A server that nobody asks anything leaves its machine alone."""

from __future__ import annotations

import contextlib
import time

import httpx
import psutil
import pytest

from server.metrics import READ_SECONDS
from tests.e2e.traffic import body
from tests.server_process import ServerProcess

SHARES = {15: 0.04, 60: 0.02}
"""Of one core, for all processes, by the seconds that they are watched; on a busy machine the same work counts more."""


def cpu_seconds(server: ServerProcess) -> float:
    """What the server's processes have used so far."""
    seconds = 0.0
    root = psutil.Process(server.process.pid)
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


@pytest.mark.parametrize("scraped", [pytest.param(False, marks=pytest.mark.long), True])
@pytest.mark.parametrize("seconds", [15, pytest.param(60, marks=pytest.mark.long)])
def test_idle_is_idle(server: ServerProcess, seconds: int, scraped: bool) -> None:
    assert httpx.post(server.url + "/v1/completions", json=body(5), timeout=60).status_code == 200
    # The last token is read, after which vLLM's workers look out for more for a second.
    time.sleep(2 * READ_SECONDS + 2)
    before, end = cpu_seconds(server), time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if scraped:
            httpx.get(server.url + "/metrics")
        time.sleep(min(left, 5.0))
    used = cpu_seconds(server) - before
    assert used < SHARES[seconds] * seconds, f"{used:.2f} s of CPU in {seconds} s"
