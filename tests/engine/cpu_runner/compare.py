"""Runs vLLM's kernels in Triton's interpreter and this project's functions on the same inputs: one process of its own.

    TRITON_INTERPRET=1 python -m tests.engine.cpu_runner.compare FIRST LAST

prints a line of JSON for each kernel and seed from FIRST to LAST that differs, and last how many were compared.
"""

from __future__ import annotations

import json
import sys
import types
from typing import Any

import torch
from torch import Tensor

from tests.engine.cpu_runner.all_launches import LAUNCHES
from tests.engine.cpu_runner.draw import LARGE_VOCABULARY, SLOTS, Draw, Launch

# Every so many seeds, a vocabulary of LARGE_VOCABULARY.
LARGE_EVERY = 20


def main(first: int, last: int) -> None:
    _patch_interpreter()
    compared: dict[str, int] = {}
    for seed in range(first, last):
        vocabulary = LARGE_VOCABULARY if seed % LARGE_EVERY == LARGE_EVERY - 1 else None
        for name in [*LAUNCHES, VERIFICATION]:
            expected, got, tolerance = (
                verified(seed, vocabulary) if name == VERIFICATION else launched(name, seed, vocabulary)
            )
            compared[name] = compared.get(name, 0) + 1
            difference = max([distance(a, b) for a, b in zip(expected, got, strict=True)], default=0.0)
            if difference > tolerance:
                print(json.dumps({"kernel": name, "seed": seed, "difference": difference}), flush=True)
    print(json.dumps({"compared": compared}))


def launched(name: str, seed: int, vocabulary: int | None) -> tuple[list[Tensor], list[Tensor], float]:
    """What the kernel and the function wrote."""
    from server.engine.cpu_runner.registration import StandIn, find_kernel
    from server.engine.cpu_runner.table import KERNELS

    kernel: Any = find_kernel(name)
    theirs, ours = (_drawn(name, seed, vocabulary) for _ in range(2))
    kernel[theirs[1].grid](*theirs[1].args, **theirs[1].constants)
    StandIn(kernel.fn, KERNELS[name])(*ours[1].args, **ours[1].constants)
    return theirs[1].results, ours[1].results, ours[1].tolerance


def _drawn(name: str, seed: int, vocabulary: int | None) -> tuple[Draw, Launch]:
    draw = Draw(seed, vocabulary)
    return draw, LAUNCHES[name](draw)


# The four kernels of the verification, by vLLM's function that launches them: what lies between leaves gaps unwritten.
VERIFICATION = "rejection_sample"
VERIFIERS = ("_compute_local_logits_stats", "_rejection", "_resample", "_insert_resampled")


def verified(seed: int, vocabulary: int | None) -> tuple[list[Tensor], list[Tensor], float]:
    """Tokens of a verification by the kernels, and by the functions."""
    import vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils as host
    from vllm.triton_utils.dispatcher import KernelOverride

    from server.engine.cpu_runner.registration import StandIn
    from server.engine.cpu_runner.table import KERNELS

    arguments = _verification(Draw(seed, vocabulary))
    if arguments["cu_num_logits"].numel() == 1:
        return [], [], 0.0
    expected = _sampled(host.rejection_sample(**arguments))
    names = [f"{name}_kernel" for name in VERIFIERS]
    kernels = {name: getattr(host, name) for name in names}
    try:
        for name, kernel in kernels.items():
            place = KERNELS[f"gpu.spec_decode.rejection_sampler_utils.{name}"]
            setattr(host, name, KernelOverride(kernel.fn, StandIn(kernel.fn, place)))
        return expected, _sampled(host.rejection_sample(**arguments)), 0.0
    finally:
        for name, kernel in kernels.items():
            setattr(host, name, kernel)


def _verification(draw: Draw) -> dict[str, Any]:
    """Drafts of which most are the likeliest token, some of them only held places (-1)."""
    steps = 4
    target = draw.logits(dtype=torch.float32)
    drafts = draw.ints(-1, draw.vocabulary, draw.rows)
    likely = torch.roll(target.argmax(-1), 1).int() if draw.rows else drafts
    drafts = torch.where(draw.ints(0, 4, draw.rows) > 0, likely, drafts)
    draft_logits = draw.logits(SLOTS * steps).reshape(SLOTS, steps, -1) if draw.seed % 2 else None
    return {
        "target_logits": target,
        "draft_logits": draft_logits,
        "draft_sampled": drafts,
        "cu_num_logits": draw.cu_num_logits,
        "pos": draw.longs(0, 4000, draw.rows),
        "idx_mapping": draw.slots,
        "expanded_idx_mapping": draw.row_slots,
        "expanded_local_pos": draw.places,
        "temperature": draw.temperatures(),
        "seed": draw.longs(-(2**62), 2**62, SLOTS),
        "num_speculative_steps": steps,
        "synthetic_conditional_rates": draw.reals(steps) if draw.seed % 5 == 4 else None,
    }


def _sampled(result: tuple[Tensor, Tensor]) -> list[Tensor]:
    tokens, number = result
    return [number, *(row[: int(length)] for row, length in zip(tokens, number, strict=True))]


def distance(expected: Tensor, got: Tensor) -> float:
    """The largest difference; infinite where integers, NaN or infinities differ."""
    if expected.shape != got.shape:
        return torch.inf
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, got) else torch.inf
    if not (torch.equal(expected.isnan(), got.isnan()) and torch.equal(_infinities(expected), _infinities(got))):
        return torch.inf
    return (expected.double() - got.double()).nan_to_num(0.0).abs().max().item() if expected.numel() else 0.0


def _infinities(tensor: Tensor) -> Tensor:
    return torch.where(tensor.isinf(), tensor.sign(), 0.0)


def _patch_interpreter() -> None:
    """Triton 3.9's interpreter refuses masks made of a Python bool and a block, and has no libdevice."""
    import vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils as utils
    from triton.runtime.interpreter import InterpreterBuilder
    from vllm.triton_utils import tl

    store, load = InterpreterBuilder.create_masked_store, InterpreterBuilder.create_masked_load

    def as_bool(mask: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return mask

    InterpreterBuilder.create_masked_store = lambda self, pointer, value, mask, *rest: store(
        self, pointer, value, as_bool(mask), *rest
    )
    InterpreterBuilder.create_masked_load = lambda self, pointer, mask, *rest: load(self, pointer, as_bool(mask), *rest)
    host: Any = utils
    host.tldevice = types.SimpleNamespace(log1p=lambda value: tl.log(1.0 + value))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
