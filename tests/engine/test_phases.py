"""What engine processes tell of their start, over a socket that they find in their environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from server.engine.phases import (
    FIRST_PASS,
    LOADING,
    SOCKET,
    WARMING,
    announce,
    announce_first_pass,
    counted,
    listening,
)


def test_another_process_is_heard_in_order() -> None:
    heard: list[dict[str, Any]] = []
    # A listener that is kept from its core loses what does not fit into the socket's queue.
    code = (
        "import time\nfrom server.engine.phases import announce\n"
        "for n in range(50): time.sleep(0.02); announce('loading', 'large', n)"
    )
    with listening(heard.append):
        subprocess.run([sys.executable, "-c", code], check=True)
    assert heard == [{"phase": "loading", "member": "large", "parameters": n} for n in range(50)]


def test_nobody_listening_is_no_fault(monkeypatch: Any) -> None:
    with listening(lambda _: None):
        path = os.environ[SOCKET]
    assert SOCKET not in os.environ
    announce("loading")
    monkeypatch.setenv(SOCKET, path)
    announce("loading")


def test_a_temporary_folder_of_a_long_name_is_no_fault(monkeypatch: Any, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with listening(lambda _: None):
        assert SOCKET not in os.environ
        announce("loading")
    assert list(folder.iterdir()) == []


def test_tensors_pass_unchanged_and_are_counted(monkeypatch: Any) -> None:
    monkeypatch.setattr("server.engine.phases.SECONDS_BETWEEN", 0.0)
    tensors = [("a", torch.zeros(3, 4)), ("b", torch.zeros(5))]
    heard: list[dict[str, Any]] = []
    with listening(heard.append):
        passed = list(counted("red", tensors))
    assert all(mine is theirs for (_, mine), (_, theirs) in zip(passed, tensors, strict=True))
    assert [(each["phase"], each["member"], each["parameters"]) for each in heard] == [
        (LOADING, "red", 0),
        (LOADING, "red", 12),
    ]


def test_the_first_forward_pass_ends_a_phase_once() -> None:
    heard: list[dict[str, Any]] = []
    model = nn.Linear(2, 2)
    with listening(heard.append):
        announce_first_pass(model)
        for _ in range(3):
            model(torch.zeros(1, 2))
    assert [each["phase"] for each in heard] == [FIRST_PASS, WARMING]
