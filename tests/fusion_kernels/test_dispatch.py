"""The face of the package: arguments, the torch custom op, warm-up."""

import pytest
import torch

from bench.cases import AGAINST, Case, make
from fusion_kernels import Weighting, fuse_logits, warm_up


def test_default_for_the_cpu_is_the_cpu_version() -> None:
    case = make(0)
    for one, other in zip(case.fuse(None), case.fuse("cpu"), strict=True):
        assert torch.equal(one, other)


def test_an_unknown_implementation_is_named() -> None:
    with pytest.raises(ValueError, match="impl is 'gpu'; the choices are reference, torch, cpu, triton"):
        make(0).fuse("gpu")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("against", torch.zeros(4, 97), r"against has shape \(4, 97\); with 5 rows it must be \[5, vocabulary\]"),
        ("against", [torch.zeros(1, 97)], r"against\[0\] has shape \(1, 97\); with 5 rows it must be \[5, "),
        ("against", [torch.zeros(5, 97)] * 2, "against has length 2; with these experts it must be one tensor, or 1"),
        ("against", [torch.zeros(5, 97).double()], r"against\[0\] is torch.float64; it must be torch.float32, torch.f"),
        ("experts", [], "experts is empty"),
        ("kind", torch.zeros(5, dtype=torch.int64), r"kind is \(5,\) torch.int64; .* must be \(5,\) torch.int8"),
        ("use", torch.ones(5, 2, dtype=torch.bool), r"use is \(5, 2\) torch.bool; .* must be \(5, 1\) torch.bool"),
    ],
)
def test_arguments_that_do_not_fit_are_named(name: str, value: object, message: str) -> None:
    case = make(0)
    setattr(case, name, value)
    with pytest.raises(ValueError, match=message):
        case.fuse(None)


def test_it_warms_up_where_a_model_is_loaded_on_another_device() -> None:
    with torch.device("meta"):
        warm_up()


@pytest.mark.parametrize("against", [("base",), AGAINST])
def test_the_custom_op_is_well_formed(against: tuple[str, ...]) -> None:
    case = make(0, number=4, against=against)
    arguments = (case.large, case.against, case.experts, case.kind, case.use, case.alpha, case.alpha_max, "cpu")
    torch.library.opcheck(torch.ops.fusion_kernels.fuse.default, arguments)


@pytest.mark.parametrize("against", [("base",), AGAINST])
def test_under_torch_compile_without_a_graph_break(against: tuple[str, ...]) -> None:
    case = make(0, number=4, against=against)

    def step(case: Case) -> torch.Tensor:
        settings = {"kind": case.kind, "use": case.use, "alpha": case.alpha, "alpha_max": case.alpha_max}
        return fuse_logits(case.large, case.against, case.experts, **settings, impl="cpu").logits * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(case), case.fuse("cpu").logits * 2)


def test_threads_share_the_rows() -> None:
    case, before = make(0, rows=7, kinds=(Weighting.KL, Weighting.STATIC)), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(case.fuse("cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0].logits, results[1].logits)


def test_warm_up() -> None:
    warm_up()
