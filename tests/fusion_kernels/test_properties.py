"""Every implementation against the float64 reference, over random problems."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from bench.cases import Case, judge, make
from tests.fusion_kernels.strategies import cases

IMPLEMENTATIONS = ["torch", "cpu"]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_keeps_its_promises(impl: str, case: Case) -> None:
    judge(case, impl)


@pytest.mark.long
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(max_vocabulary=2000, max_rows=8, max_experts=8))
def test_keeps_its_promises_in_many_more_cases(impl: str, case: Case) -> None:
    judge(case, impl)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("number", [1, pytest.param(8, marks=pytest.mark.long)])
def test_a_real_vocabulary(impl: str, number: int) -> None:
    judge(make(number, rows=3, vocabulary=32_003, number=number, paddings=(0, 61), dtype=torch.bfloat16), impl)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("scale", [100.0, 3000.0])
@pytest.mark.parametrize("seed", range(4))
def test_huge_logits(impl: str, scale: float, seed: int) -> None:
    judge(make(seed, rows=10, vocabulary=200, number=2, scale=scale, spread=scale / 2), impl)
