"""What Triton's interpreter cannot show: NaN, counts of NaN, threads, and what is refused."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.triton_utils.dispatcher import KernelOverride

from fusion_kernels.cpu.threads import over_ranges
from server.engine.cpu_runner import registration
from server.engine.cpu_runner.likelihoods import compute_local_logits_stats
from server.engine.cpu_runner.logprobs import num_nans
from server.engine.cpu_runner.registration import StandIn, find_kernel
from server.engine.cpu_runner.sampling import choose
from server.engine.cpu_runner.table import KERNELS, UNSUPPORTED


def chosen(logits: Tensor, temperature: float, seed: int = 0, position: int = 0) -> list[int]:
    """The token of each row."""
    rows, vocabulary = logits.shape
    blocks = -(-vocabulary // 1024)
    winners, tops = torch.zeros(rows, blocks, dtype=torch.int64), torch.zeros(rows, blocks)
    slots, positions = torch.zeros(rows, dtype=torch.int64), torch.full((rows,), position)
    seeds, temperatures = torch.tensor([seed]), torch.tensor([temperature])
    choose(winners, tops, logits, slots, seeds, positions, temperatures, False, True, False)
    return winners.gather(1, tops.argmax(-1, keepdim=True))[:, 0].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_is_never_chosen(dtype: torch.dtype, temperature: float) -> None:
    logits = torch.full((4, 3000), -math.inf, dtype=dtype)
    logits[:, ::2] = math.nan
    for row, token in enumerate((1, 1023, 1025, 2999)):
        logits[row, token] = 2.0
    assert chosen(logits, temperature) == [1, 1023, 1025, 2999]


def test_a_row_of_nan_still_gives_a_token() -> None:
    assert chosen(torch.full((2, 3000), math.nan), 0.0) == [0, 0]


def test_infinite_logits_win() -> None:
    logits = torch.zeros(2, 3000)
    logits[:, 1500] = math.inf
    assert chosen(logits, 0.0) == chosen(logits, 1.0) == [1500, 1500]


def test_draws_have_the_distribution() -> None:
    """200,000 draws of four tokens, by as many positions: within four standard deviations of their probabilities."""
    draws = 200_000
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(draws, 4)
    winners, tops = torch.zeros(draws, 1, dtype=torch.int64), torch.zeros(draws, 1)
    slots = torch.zeros(draws, dtype=torch.int64)
    choose(
        winners, tops, logits, slots, torch.tensor([5]), torch.arange(draws), torch.tensor([0.7]), False, True, False
    )
    expected = (logits[0] / 0.7).softmax(-1) * draws
    counts = winners[:, 0].bincount(minlength=4)
    assert ((counts - expected).abs() < 4 * expected.sqrt()).all()


def test_threads_change_no_draw() -> None:
    logits = torch.randn(7, 140_000, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = chosen(logits, 0.8)
        torch.set_num_threads(4)
        assert chosen(logits, 0.8) == alone
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("count", "smallest"), [(0, 1), (1, 1), (10, 1), (10, 4), (10, 100)])
def test_ranges_cover_all_once(threads: int, count: int, smallest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    seen: list[tuple[int, int]] = []
    over_ranges(lambda first, stop: seen.append((first, stop)), count, smallest)
    places = sorted(place for first, stop in seen for place in range(first, stop))
    assert places == list(range(count))
    assert len(seen) == 1 or min(stop - first for first, stop in seen) >= smallest


def test_nan_are_counted() -> None:
    logits = torch.zeros(3, 50)
    logits[1, 7] = logits[1, 9] = logits[2, 0] = math.nan
    out = torch.zeros(3, dtype=torch.int32)
    num_nans(logits, out)
    assert out.tolist() == [0, 2, 1]


def test_statistics_pass_over_nan() -> None:
    target = torch.tensor([[1.0, math.nan, 3.0, -math.inf], [math.nan] * 4])
    results: list[Any] = [torch.zeros(2, 1, dtype=torch.int64), *(torch.zeros(2, 1) for _ in range(4))]
    slots, places = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int32)
    rest: list[Any] = [target, None, slots, places, torch.ones(1), 4, 3]
    compute_local_logits_stats(*results, *rest)
    assert results[0].tolist() == [[2], [0]]
    assert results[1].tolist() == [[3.0], [-math.inf]]
    assert results[2].tolist() == [[pytest.approx(1 + math.exp(-2))], [0.0]]


@pytest.mark.parametrize(
    ("kernel", "argument", "feature"),
    [
        ("gpu.block_table._compute_slot_mappings_kernel", "CP_SIZE", "decode context parallelism"),
        ("gpu.spec_decode.rejection_sampler_utils._rejection_kernel", "USE_BLOCK_VERIFICATION", "block"),
        ("gpu.spec_decode.rejection_sampler_utils._resample_kernel", "USE_BLOCK_VERIFICATION", "block"),
        ("gpu.spec_decode.rejection_sampler_utils._resample_kernel", "WATERMARK", "watermarking"),
    ],
)
def test_unsupported_arguments_are_refused_by_name(kernel: str, argument: str, feature: str) -> None:
    found = find_kernel(kernel)
    assert found is not None
    # It stands there already where an earlier test of the process started an engine.
    stand_in = found.func if isinstance(found, KernelOverride) else StandIn(found, KERNELS[kernel])
    assert isinstance(stand_in, StandIn)
    constants = dict.fromkeys(stand_in.arguments, False) | {argument.lower(): 2}
    with pytest.raises(NotImplementedError, match=feature):
        stand_in(**constants)


def test_unsupported_kernels_exist_and_are_refused_by_name() -> None:
    for kernel, feature in UNSUPPORTED.items():
        assert find_kernel(kernel) is not None
        with pytest.raises(NotImplementedError, match=feature):
            registration.refusal(feature)(1, BLOCK_SIZE=2)


def test_a_kernel_without_the_wanted_arguments_is_told() -> None:
    def kernel(other_ptr: int) -> None: ...

    with pytest.raises(RuntimeError, match="seq_lens"):
        StandIn(kernel, "inputs.prepare_pos_seq_lens")(1)


def test_another_type_is_refused_and_not_compiled() -> None:
    function = importlib.import_module("server.engine.cpu_runner.mamba").fill_num_accepted
    with pytest.raises(TypeError):
        function(torch.zeros(1, dtype=torch.int32).numpy(), torch.zeros(1, dtype=torch.int32).numpy(), 1)
