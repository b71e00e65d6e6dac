"""The GPU's kernels, compiled for cards that need not be here: nothing spilled, and one kernel for every size."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from bench.gpu.cost import kernels_of, predict
from bench.gpu.resources import REGISTERS, SHARED_LIMITS, THREADS_PER_PROGRAM, compile_all, example
from fusion_kernels.batch import Batch, Fused
from fusion_kernels.triton import launch

KERNELS = ["scan_kernel", "advance_kernel", "finish_kernel", "write_kernel"]


@pytest.mark.parametrize(
    ("architecture", "batch"),
    [
        (80, {}),
        (90, {}),
        (100, {}),
        (90, {"dtype": torch.float32, "vocabulary": 50_257}),
        pytest.param(90, {"number": 9}, marks=pytest.mark.long),
    ],
)
def test_nothing_is_spilled(architecture: int, batch: dict[str, Any]) -> None:
    kernels = compile_all(architecture, example(**batch))
    assert [kernel.kernel for kernel in kernels] == KERNELS
    for kernel in kernels:
        assert kernel.spilled == 0, kernel
        assert kernel.registers * THREADS_PER_PROGRAM <= REGISTERS, kernel
        assert kernel.shared <= SHARED_LIMITS[architecture], kernel
        assert kernel.programs >= (2 if kernel.kernel == "finish_kernel" else 3), kernel


def variants(batch: Batch) -> list[str]:
    """What Triton would look for among its compiled kernels, launch by launch."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    found = []
    for each in launch.launches(batch, Fused.room_for(batch)):
        bind: Any = create_function_from_signature(each.kernel.signature, each.kernel.params, backend)
        found.append(f"{each.kernel.__name__} {bind(**each.arguments)[1]}")
    return found


def test_one_variant_for_any_number_of_experts_and_rows() -> None:
    known = variants(example(number=1))
    for number in range(1, launch.SLOTS + 1):
        for rows in (1, 2, 17):
            assert variants(example(number=number, rows=rows)) == known


def test_experts_of_other_lengths_and_strides_are_no_variant() -> None:
    batch = example(number=3, rows=4, vocabulary=32_000)
    known = variants(batch)
    # As vLLM's heads give them: columns of a padded matrix.
    experts = [torch.empty(4, 32_064, dtype=torch.bfloat16)[:, :length] for length in (31_999, 32_000, 32_011)]
    assert variants(batch._replace(experts=experts)) == known
    assert variants(batch._replace(against=experts)) == known


def test_what_experts_are_compared_with_is_no_variant() -> None:
    batch = example(number=3, rows=4)
    own, nothing = torch.empty_like(batch.large), torch.zeros_like(batch.large[:1]).expand(4, -1)
    assert variants(batch._replace(against=[batch.against[0], own, nothing])) == variants(batch)


def test_what_is_predicted() -> None:
    kernels = kernels_of()
    one, sixteen = predict(1, 128_256, kernels), predict(16, 128_256, kernels)
    assert one.us < 30
    assert sixteen.us < 26, "the aim is twice the floor and the launches; docs/kernels.md says what is missing"
    assert one.us > one.floor
    assert sixteen.us > sixteen.floor


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_the_check_says_that_there_is_no_card() -> None:
    done = subprocess.run([sys.executable, "-m", "bench.gpu.check"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == "No NVIDIA card here: only what needs none can be told, with --without-card.\n"
