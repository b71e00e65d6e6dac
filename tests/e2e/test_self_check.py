"""A server that does not fuse does not say "Ready"."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Run by Python in every process that starts with this folder in its path, the engine's among them.
FAULTS = {
    "settings that are lost on their way": (
        "from server.engine import settings\nsettings.FusionSettings.of = classmethod(lambda cls, params: cls())\n",
        "was answered by the large model alone",
    ),
    "experts that trade places": (
        "from server.engine import composite\n"
        "plain = composite._fuse\n"
        "composite._fuse = lambda large, base, experts, rows: plain(large, base, experts[::-1], rows)\n",
        "static: fused logits are off by",
    ),
    "a kernel that is wrong": (
        "import torch\n"
        "from fusion_kernels import cpu\n"
        "plain = cpu.fuse\n"
        "def fuse(batch):\n"
        "    found = plain(batch)\n"
        "    return found._replace(logits=found.logits + 0.01 * (batch.kind == 2)[:, None])\n"
        "cpu.fuse = fuse\n",
        "kl: fused logits are off by",
    ),
}
# Faults are put in when the engine's process imports the module, not before: vLLM's environment is set by then.
HOOK = """\
import sys
from importlib.abc import MetaPathFinder


class Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "server.engine.extension":
            sys.meta_path.remove(self)
            {fault}
        return None


sys.meta_path.insert(0, Finder())
"""


FIRST, *OTHERS = FAULTS


@pytest.mark.parametrize("fault", [FIRST, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)])
def test_it_refuses_to_start(family: Path, tmp_path: Path, fault: str) -> None:
    code, words = FAULTS[fault]
    indented = code.replace("\n", "\n            ")
    (tmp_path / "sitecustomize.py").write_text(HOOK.format(fault=indented))
    done = serve(family, {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert "the engine did not start (checking that it fuses)" in done.stderr
    assert words in done.stderr
    assert "Ready" not in done.stderr


@pytest.mark.long
def test_plugins_that_leave_it_out(family: Path) -> None:
    done = serve(family, {"VLLM_PLUGINS": "another"})
    assert done.returncode == 1
    assert "the engine did not start" in done.stderr
    assert "Ready" not in done.stderr


def serve(config: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A server that is expected to end by itself."""
    command = [sys.executable, "-m", "server", "serve", "--config", str(config), "--port", "0"]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)
