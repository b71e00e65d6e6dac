"""The kernels on a card: right, and how fast beside the prediction, the bandwidth floor and the paper's loop."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.cases import DTYPES, KINDS, judge, make
from bench.gpu.cost import SHAPES, Prediction
from bench.kernels import Case as Logits
from bench.kernels import paper_loop
from fusion_kernels import Weighting

DEVICE = "cuda"
LAUNCHES = 50


def prove(draws: int = 200) -> str:
    """Hold the kernels to the reference, on random rows and on those that break naive code.

    Raises:
        AssertionError: a result differs, or a fusion waited for the device.
    """
    for seed in range(draws):
        number, dtype = 1 + seed % 8, DTYPES[seed % 3]
        spread, masked = (0.01, 1.0, 3.0, 10.0)[seed % 4], (0.0, 0.0, 0.2, 0.9)[seed // 4 % 4]
        shape = {"rows": len(KINDS), "vocabulary": 2 + seed * 97 % 9_000, "number": number, "paddings": (0, 5, 130)}
        judge(make(seed, **shape, spread=spread, masked=masked, dtype=dtype), "triton", DEVICE)  # type: ignore[arg-type]
    for vocabulary in (32_000, 50_257, 152_064, 262_144):
        judge(make(1, rows=len(KINDS), vocabulary=vocabulary, number=2, dtype=torch.bfloat16), "triton", DEVICE)
    judge(make(5, rows=len(KINDS), vocabulary=20_000, number=1, scale=3000.0, spread=1500.0), "triton", DEVICE)
    _prove_graph_and_rows()
    return (
        f"{draws + 5} random fusions as the reference says; the same in a CUDA graph, and for each row alone; no waits"
    )


def _prove_graph_and_rows() -> None:
    case = make(3, rows=len(KINDS), vocabulary=40_000, number=2, dtype=torch.bfloat16).to(DEVICE)
    eager = case.fuse("triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = case.fuse("triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case.fuse("triton")
    graph.replay()
    for name, one, other, third in zip(eager._fields, eager, again, captured, strict=True):
        assert torch.equal(one, other), f"{name} of a second fusion differs"
        assert torch.equal(one, third), f"{name} in a CUDA graph differs"
    for row in range(len(KINDS)):
        for name, one, many in zip(eager._fields, case.row_alone(row).fuse("triton"), eager, strict=True):
            assert torch.equal(one[0], many[row]), f"{name} of row {row} alone differs"


def measure(predictions: list[Prediction]) -> Iterator[dict[str, Any]]:
    """Times of `kl` with one expert in bfloat16, one line a shape."""
    by_shape = {(found.rows, found.vocabulary): found for found in predictions}
    for rows, vocabulary in SHAPES:
        case = Logits(rows, vocabulary, 1, torch.bfloat16)
        copied, fused = microseconds(case.copy()), microseconds(case.fuse(Weighting.KL))
        # The loop needs float32 copies of all its candidates' logits.
        loop = microseconds(lambda case=case: paper_loop(case.large, case.base, case.experts))  # type: ignore[misc]
        yield {
            "rows": rows,
            "vocabulary": vocabulary,
            "us": fused,
            "predicted_us": by_shape[rows, vocabulary].us,
            "floor_us": copied,
            "times_floor": fused / copied,
            "loop_us": loop,
            "faster_than_loop": loop / fused,
            "eager_us": microseconds(case.fuse(Weighting.KL), graph=False),
        }


def microseconds(run: Callable[[], object], graph: bool = True) -> float:
    """Median time of one run on the device, of many in one CUDA graph or launched one by one."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    repeat = run
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            run()
        repeat = captured.replay
    times = []
    for _ in range(LAUNCHES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        repeat()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)) * 1000)
    return statistics.median(times)
