"""The Triton version against the reference: natively on a GPU, else under Triton's interpreter.

The interpreter must be chosen before triton is imported, and nothing else should run under it: so without a GPU one
test runs this file again in a process of its own.
"""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from bench.cases import AGAINST, KINDS, Case, judge, make
from fusion_kernels import Weighting
from fusion_kernels.triton import launch
from tests.fusion_kernels.strategies import cases, equally_good

NATIVE = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if NATIVE else "cpu"
runs = pytest.mark.skipif(not NATIVE and not INTERPRETED, reason="runs in the process of test_under_the_interpreter")


def interpret(marked: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.skipif(NATIVE or INTERPRETED, reason="the tests below run in this process")
def test_under_the_interpreter() -> None:
    interpret("not long")


@pytest.mark.long
@pytest.mark.skipif(NATIVE or INTERPRETED, reason="the tests below run in this process")
def test_long_ones_under_the_interpreter() -> None:
    interpret("long")


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a few hundred ids have many chunks, with whole blocks and with rests."""
    monkeypatch.setattr(launch, "CHUNK_IDS", 96)
    monkeypatch.setattr(launch, "BLOCK_IDS", 32)
    monkeypatch.setattr(launch, "WIDE_IDS", 64)


@runs
@settings(
    max_examples=200 if NATIVE else 8, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(case=cases(max_vocabulary=300, max_rows=3, max_experts=3))
def test_keeps_its_promises(case: Case) -> None:
    judge(case, "triton", DEVICE)


@runs
def test_of_equally_good_experts_the_first_is_taken() -> None:
    case = equally_good(rows=8)
    assert torch.equal(case.to(DEVICE).fuse("triton").alpha.cpu(), case.fuse("reference").alpha)


@runs
@pytest.mark.parametrize(("number", "kinds"), [(1, KINDS), (8, (Weighting.KL_SAFE, Weighting.KL))])
def test_rows_of_several_blocks(number: int, kinds: tuple[Weighting, ...]) -> None:
    case = make(number, len(kinds), 4_500, number, kinds=kinds, paddings=(0, 5, 2), masked=0.1)
    judge(case, "triton", DEVICE)


@runs
@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize(
    ("seed", "shape"),
    [
        (1, {"vocabulary": 200, "number": 2, "paddings": (0, 150, 3, 90)}),
        (2, {"vocabulary": 256, "number": 1, "dtype": torch.bfloat16}),
        (3, {"vocabulary": 150, "number": 2, "masked": 0.9, "scale": 10.0}),
        (4, {"vocabulary": 150, "number": 1, "spread": 10.0, "scale": 10.0}),
        (5, {"vocabulary": 200, "number": 3, "against": AGAINST, "masked": 0.2, "paddings": (0, 150, 3, 90)}),
    ],
)
def test_rows_of_many_chunks(seed: int, shape: dict[str, object]) -> None:
    judge(make(seed, rows=len(KINDS), **shape), "triton", DEVICE)  # type: ignore[arg-type]


def far(larger: float, *, padding: int = 0) -> Case:
    """A row for which no weight is large enough, and whose deltas reach `larger` above the top token's."""
    rows = Weighting.KL, Weighting.KL_SAFE, Weighting.KL_GRID
    large = torch.tensor([[0.0, 0.0, -torch.inf] + [-30.0] * padding] * len(rows))
    base = torch.tensor([[0.0, 0.0, 0.0] + [0.0] * padding] * len(rows))
    expert = torch.tensor([[0.0, 1.0, larger] + [0.0] * padding] * len(rows))
    return Case(
        large,
        [base],
        [expert],
        torch.tensor(rows, dtype=torch.int8),
        torch.ones(len(rows), 1, dtype=torch.bool),
        torch.ones(len(rows), 1),
        torch.tensor([2.0, 2.0, 0.9]),
    )


@runs
@pytest.mark.parametrize("larger", [20.0, 40.0, 400.0])
def test_no_weight_is_above_the_largest_one(larger: float) -> None:
    case = far(larger)
    judge(case, "triton", DEVICE)
    # The third is the grid's own 0.9, which no rounding may lose.
    assert case.to(DEVICE).fuse("triton").alpha[:, 0].cpu().tolist()[::2] == pytest.approx([2.0, 0.9], abs=1e-3)


@runs
@pytest.mark.usefixtures("short_chunks")
def test_a_wild_chunk_of_a_tame_row() -> None:
    # The second chunk's own top has a delta of -40, the row's and all others 0: reach 2 and 42.
    case = far(2.0, padding=189)
    case.large[:, 96], case.experts[0][:, 96] = -1.0, -40.0
    judge(case, "triton", DEVICE)


@runs
@pytest.mark.usefixtures("short_chunks")
def test_chunks_without_any_token_of_a_member() -> None:
    case = make(9, rows=len(KINDS), vocabulary=200, number=2)
    case.use[:] = True
    case.large[:, :96] = case.against[0][:, 96:192] = -torch.inf
    case.experts[0][:, 192:] = case.experts[1][:, :100] = -torch.inf
    judge(case, "triton", DEVICE)


@runs
@pytest.mark.usefixtures("short_chunks")
def test_a_row_is_the_same_whatever_is_beside_it() -> None:
    case = make(6, rows=len(KINDS), vocabulary=180, number=2, spread=3.0)
    together = case.to(DEVICE).fuse("triton")
    for i in range(len(KINDS)):
        for one, many in zip(case.row_alone(i).to(DEVICE).fuse("triton"), together, strict=True):
            assert torch.equal(one[0], many[i])


@runs
@pytest.mark.parametrize("kind", [Weighting.STATIC, Weighting.KL, Weighting.KL_GRID, Weighting.ALONE])
def test_broken_members(kind: Weighting) -> None:
    case = make(7, rows=5, vocabulary=2500, number=2, kinds=(kind,))
    case.use[:] = True
    case.experts[0][1, 2300] = torch.nan
    case.experts[1][2, 5] = torch.inf
    case.against[0][3, 2] = case.experts[0][3, 7] = torch.nan
    judge(case, "triton", DEVICE)


@runs
@pytest.mark.parametrize("kind", [Weighting.KL_SAFE, Weighting.ALONE])
def test_broken_comparisons(kind: Weighting) -> None:
    case = make(7, rows=6, vocabulary=2500, number=3, kinds=(kind,), against=("own", "base"))
    case.use[:] = torch.tensor([True, True, False])
    case.against[0][1, 2300] = case.against[1][2, 5] = torch.nan
    case.experts[0][3, 7] = case.against[1][3, 2] = torch.inf
    case.against[1][4, 6] = case.experts[1][4, 2] = torch.nan
    case.against[2][5, 1] = torch.nan
    judge(case, "triton", DEVICE)


@runs
def test_formats_may_differ() -> None:
    case = make(8, rows=len(KINDS), number=3, against=AGAINST, dtype=torch.bfloat16)
    case.against[1], case.experts[2] = case.against[1].float(), case.experts[2].half()
    judge(case, "triton", DEVICE)


@runs
def test_huge_logits() -> None:
    judge(make(5, rows=5, vocabulary=200, number=1, scale=3000.0, spread=1500.0), "triton", DEVICE)


@runs
@pytest.mark.long
@pytest.mark.parametrize("vocabulary", [32_000, 50_257, 152_064, 262_144])
@pytest.mark.parametrize("number", [1, 2, 8])
def test_large_vocabularies(vocabulary: int, number: int) -> None:
    rows = len(KINDS) if NATIVE or number == 1 else 1
    case = make(1, rows=rows, vocabulary=vocabulary, number=number, dtype=torch.bfloat16, kinds=KINDS[2:] + KINDS[:2])
    judge(case, "triton", DEVICE)


@runs
@pytest.mark.skipif(not NATIVE, reason="needs a GPU")
def test_in_a_cuda_graph() -> None:
    case = make(3, rows=8, vocabulary=4000, number=2, kinds=(Weighting.KL, Weighting.STATIC)).to("cuda")
    eager = case.fuse("triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case.fuse("triton")
    graph.replay()
    for one, other in zip(captured, eager, strict=True):
        assert torch.equal(one, other)
