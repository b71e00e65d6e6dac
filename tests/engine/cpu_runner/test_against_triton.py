"""Every function beside the kernel that it stands for, run by Triton's interpreter, on random inputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.engine.cpu_runner.table import KERNELS
from tests.engine.cpu_runner.all_launches import LAUNCHES
from tests.engine.cpu_runner.compare import LARGE_EVERY, VERIFICATION, VERIFIERS

ROOT = Path(__file__).parents[3]
# It calls a function of CUDA's library of devices, which the interpreter lacks; `test_functions.py` has it.
NOT_INTERPRETED = {"gpu.metrics.logits._num_nans_kernel"}


def compare(folder: Path, first: int, last: int) -> tuple[dict[str, int], list[dict[str, object]]]:
    """How often each kernel was compared for the seeds, and what differed."""
    backend = folder / "triton_cpu-0.dist-info"
    backend.mkdir(exist_ok=True)
    (backend / "METADATA").write_text("Metadata-Version: 2.1\nName: triton-cpu\nVersion: 0\n")
    (backend / "entry_points.txt").write_text("[triton.backends]\ncpu = tests.engine.cpu_runner.triton_cpu\n")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "TRITON_INTERPRET": "1",
        "VLLM_PLUGINS": "none",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    command = [sys.executable, "-m", "tests.engine.cpu_runner.compare", str(first), str(last)]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-5000:]
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    return lines[-1]["compared"], lines[:-1]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, int], list[dict[str, object]]]:
    return compare(tmp_path_factory.mktemp("triton"), 0, LARGE_EVERY)


@pytest.mark.parametrize("kernel", [*LAUNCHES, VERIFICATION])
def test_equals_the_kernel(kernel: str, compared: tuple[dict[str, int], list[dict[str, object]]]) -> None:
    times, differences = compared
    assert times[kernel] == LARGE_EVERY
    assert [found for found in differences if found["kernel"] == kernel] == []


def test_every_kernel_is_compared() -> None:
    verifiers = {f"gpu.spec_decode.rejection_sampler_utils.{name}_kernel" for name in VERIFIERS}
    assert set(LAUNCHES) | verifiers | NOT_INTERPRETED == set(KERNELS)


@pytest.mark.long
def test_equals_the_kernels_over_many_draws(tmp_path: Path) -> None:
    times, differences = compare(tmp_path, 1000, 1400)
    assert set(times.values()) == {400}
    assert differences == []
