"""Every implementation against the float64 reference, over random problems."""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fusion_kernels.cases import Case, cases, judge, make

IMPLEMENTATIONS = ["torch", "cpu"]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_keeps_its_promises(impl: str, case: Case) -> None:
    judge(case, impl)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("scale", [100.0, 3000.0])
@pytest.mark.parametrize("seed", range(4))
def test_huge_logits(impl: str, scale: float, seed: int) -> None:
    judge(make(seed, rows=10, vocabulary=200, number=2, scale=scale, spread=scale / 2), impl)
