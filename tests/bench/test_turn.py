"""A client that goes first leaves what it starts later as it would be."""

from __future__ import annotations

import subprocess
import sys

CHILD = """
import ctypes, os, subprocess, sys, threading
from bench.turn import go_as_usual, go_first

go_first()
# What a library does that asks for its own turn, and then starts ZeroMQ's threads.
libc = ctypes.CDLL(None)
libc.pthread_self.restype = ctypes.c_void_p
policy, priority = ctypes.c_int(), ctypes.c_int()
libc.pthread_getschedparam(ctypes.c_void_p(libc.pthread_self()), ctypes.byref(policy), ctypes.byref(priority))
import zmq

zmq.Context().socket(zmq.ROUTER).bind("inproc://turn")
zmq.Context().socket(zmq.ROUTER).bind("tcp://127.0.0.1:*")
turns = []
thread = threading.Thread(target=lambda: turns.append(os.sched_getscheduler(0)))
thread.start()
thread.join()
turns.append(int(subprocess.run([sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"],
                                stdout=subprocess.PIPE, check=True).stdout))
go_as_usual()
turns.append(os.sched_getscheduler(0))
assert turns == [os.SCHED_OTHER] * 3, turns
os._exit(0)
"""


def test_threads_and_processes_started_later_run_as_usual() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
