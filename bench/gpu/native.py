"""The kernels on a card: right, and how fast beside the prediction, the bandwidth floor and the paper's loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch

from bench.cases import AGAINST, DTYPES, KINDS, Case, judge, make
from bench.gpu.cost import SHAPES, Prediction
from bench.kernels import Case as Logits
from bench.kernels import paper_loop
from fusion_kernels import Fused, Weighting

DEVICE = "cuda"
RUNS = 20
REPEATS = 50
# More rows than a card has programs for at once: whoever arrives last is another one each time.
MANY_ROWS, LONG = 256, 152_064


def prove(seconds: float, draws: int = 200) -> str:
    """Hold the kernels to the reference, on random rows and on those that break naive code, while there is time.

    Raises:
        AssertionError: a result differs, or a fusion waited for the device; with all that did.
    """
    end = time.monotonic() + seconds
    faults, done = [], 0
    cases = chain(_extreme(), _drawn(draws))
    for work in chain([_prove_no_wait, _prove_graph, _prove_rows, _prove_order], cases):
        if time.monotonic() > end:
            break
        try:
            work()
        except AssertionError as error:
            faults.append(f"{done}: {error}")
        done += 1
    if faults:
        raise AssertionError(f"{len(faults)} of {done} checks failed: " + "; ".join(faults))
    return f"{done} checks passed: fusions as the reference says, and alike in a graph, alone, again and in any order"


def _extreme() -> Iterator[Callable[[], None]]:
    for vocabulary in (32_000, 50_257, LONG, 262_144):
        shape: dict[str, Any] = {"rows": len(KINDS), "vocabulary": vocabulary, "number": 2, "dtype": torch.bfloat16}
        yield partial(_judge, 1, shape)
    yield partial(_judge, 5, {"rows": len(KINDS), "vocabulary": 20_000, "scale": 3000.0, "spread": 1500.0})


def _drawn(draws: int) -> Iterator[Callable[[], None]]:
    """Few combinations of what kernels are compiled for, in turn: formats, alignment, one chunk or two."""
    for seed in range(draws):
        dtype = DTYPES[seed % 3] if seed % 4 == 0 else torch.bfloat16
        aligned, short = seed % 2 == 0, dtype != torch.bfloat16 or seed % 8 < 4
        ids = 2 + seed * 97 % (4_000 if short else 8_000)
        yield partial(
            _judge,
            seed,
            {
                "rows": len(KINDS),
                "vocabulary": -(-ids // 16) * 16 if aligned else ids,
                "paddings": (0, 16, 144) if aligned else (0, 5, 130),
                "number": 1 + seed % 8,
                "spread": (0.01, 1.0, 3.0, 10.0)[seed // 2 % 4],
                "masked": (0.0, 0.0, 0.2, 0.9)[seed // 8 % 4],
                "against": (("base",), AGAINST)[seed // 32 % 2],
                "broken": (0.0, 0.0, 0.2)[seed % 3],
                "dtype": dtype,
            },
        )


def _judge(seed: int, shape: dict[str, Any]) -> None:
    judge(make(seed, **shape), "triton", DEVICE)


def _case(rows: int = len(KINDS), vocabulary: int = 40_000) -> Case:
    return make(3, rows=rows, vocabulary=vocabulary, number=2, dtype=torch.bfloat16).to(DEVICE)


def _same(found: Fused, wanted: Fused, what: str) -> None:
    for name, one, other in zip(Fused._fields, found, wanted, strict=True):
        assert torch.equal(one, other), f"{name} {what} differs"


def _prove_no_wait() -> None:
    case = _case()
    case.fuse("triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.fuse("triton")
    except RuntimeError as error:
        raise AssertionError(f"a fusion waited for the device: {error}") from error
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _prove_graph() -> None:
    case = _case()
    case.fuse("triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case.fuse("triton")
    for _ in range(3):
        graph.replay()
        _same(captured, case.fuse("triton"), "in a CUDA graph")
        case.large.copy_(case.large.roll(1, dims=0))


def _prove_rows() -> None:
    case = _case()
    together = case.fuse("triton")
    for row in range(len(KINDS)):
        _same(
            case.row_alone(row).fuse("triton"),
            Fused(*(value[row : row + 1] for value in together)),
            f"of row {row} alone",
        )


def _prove_order() -> None:
    case = _case(MANY_ROWS, LONG)
    first = case.fuse("triton")
    for turn in range(REPEATS):
        _same(case.fuse("triton"), first, f"of repetition {turn}")


def measure(predictions: list[Prediction]) -> Iterator[dict[str, Any]]:
    """Times of `kl` with one expert in bfloat16, one line a shape; all that fits is in the L2 cache."""
    by_shape = {(found.rows, found.vocabulary): found.us for found in predictions}
    for rows, vocabulary in SHAPES:
        case = Logits(rows, vocabulary, 1, torch.bfloat16)
        copied, fused = microseconds(case.copy()), microseconds(case.fuse(Weighting.KL))
        # The loop needs float32 copies of all its candidates' logits.
        loop = microseconds(partial(paper_loop, case.large, case.base, case.experts))
        yield {
            "rows": rows,
            "vocabulary": vocabulary,
            "us": fused,
            "predicted_us": by_shape.get((rows, vocabulary), float("nan")),
            "floor_us": copied,
            "times_floor": fused / copied,
            "loop_us": loop,
            "faster_than_loop": loop / fused,
            "eager_us": microseconds(case.fuse(Weighting.KL), graph=False),
        }


def microseconds(run: Callable[[], object], graph: bool = True) -> float:
    """Median time of one run on the device, of `RUNS` in a row in one CUDA graph, or launched one by one."""
    run()
    torch.cuda.synchronize()

    def runs() -> None:
        for _ in range(RUNS):
            run()

    repeat: Callable[[], object] = runs
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            runs()
        repeat = captured.replay
    times = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        repeat()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)) * 1000 / RUNS)
    return statistics.median(times)
