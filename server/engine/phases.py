"""What the engine's processes are at while they start, told to the server's process.

They inherit the path of a Unix datagram socket in their environment and send a few short JSON objects to it. Nobody
waits for anybody: without a listener, or with a full one, a message is lost, and the engine starts all the same. On a
machine of its own (vLLM's multi-node executors) there is no such path, and nothing is shown.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch import nn

# The environment variable that holds the socket's path.
SOCKET = "LOGIT_FUSION_PHASES"
BUILDING, LOADING, FIRST_PASS, WARMING, FAILED = "building", "loading", "first pass", "warming", "failed"
SECONDS_BETWEEN = 0.1
MAX_REASON = 2000


def announce(phase: str, member: str = "", parameters: int = 0) -> None:
    """Tell the server what this process is at; the first of several ranks speaks for all."""
    if not (torch.distributed.is_initialized() and torch.distributed.get_rank()):
        _send({"phase": phase, "member": member, "parameters": parameters})


class Failures(logging.Handler):
    """Announces the exceptions that a process logs: of those that end a start, the first is the cause of all others."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send the exception of a record that has one, in one line."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            text = " ".join(Text.from_ansi(str(error)).plain.split())[:MAX_REASON]
            _send({"phase": FAILED, "reason": f"{type(error).__name__}: {text}" if text else repr(error)})


def _send(message: dict[str, Any]) -> None:
    path = os.environ.get(SOCKET)
    if path is None:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(json.dumps(message).encode(), path)


def counted(member: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass a member's tensors on, announcing how many parameters have been read."""
    read, told = 0, 0.0
    for name, tensor in tensors:
        if time.monotonic() - told >= SECONDS_BETWEEN:
            announce(LOADING, member, read)
            told = time.monotonic()
        yield name, tensor
        read += tensor.numel()


def announce_first_pass(model: nn.Module) -> None:
    """Announce that the weights are there, and later that the first forward pass, which compiles, is over."""

    def over(*_: Any) -> None:
        handle.remove()
        announce(WARMING)

    handle = model.register_forward_hook(over)
    announce(FIRST_PASS)


@contextlib.contextmanager
def listening(hear: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Hand what engines announce that start inside this block to `hear`, in a thread of its own.

    Where no socket can be made (the temporary folder is read-only, or its path too long for one), nothing is heard.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="logit-fusion-"))
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            path = str(Path(folder) / "phases")
            sock.bind(path)
        except OSError:
            yield
            return
        thread = threading.Thread(target=_hand_on, args=(sock, hear), name="engine-phases", daemon=True)
        thread.start()
        os.environ[SOCKET] = path
        try:
            yield
        finally:
            del os.environ[SOCKET]
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.sendto(b"", path)
            thread.join()


def _hand_on(sock: socket.socket, hear: Callable[[dict[str, Any]], None]) -> None:
    while message := sock.recv(65536):
        hear(json.loads(message))
