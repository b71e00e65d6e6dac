"""What a step must not depend on: whose memory holds a member's output, graphs, members that nobody asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LONG = [pytest.param(scenario, marks=pytest.mark.long) for scenario in ("shared-buffer", "everyone")]


@pytest.mark.parametrize("scenario", ["graphs", "no-host-reads", *LONG])
def test_answers_are_the_same(family: Path, scenario: str) -> None:
    command = [sys.executable, "-m", "tests.engine.in_process", scenario, str(family.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "same"
