"""All weights at once: never worse than the best single expert, and as good as a dense search of the square."""

import pytest
import torch

from fusion_kernels import Weighting, reference
from tests.fusion_kernels.cases import make


@pytest.mark.parametrize("seed", range(3))
def test_as_good_as_a_dense_search_over_two_weights(seed: int) -> None:
    case = make(seed, rows=3, number=2, vocabulary=40, kinds=(Weighting.KL_JOINT,))
    case.use.fill_(True)
    out = case.fuse("cpu")
    for i in range(3):
        problem, limit = case.row(i, [0, 1]), float(case.alpha_max[i])
        axis = torch.linspace(0, limit, 21, dtype=torch.float64).tolist()
        dense = min(float(reference.objective(problem.at([x, y]), problem.target)) for x in axis for y in axis)
        found = float(reference.objective(problem.at(out.alpha[i].tolist()), problem.target))
        assert found <= dense * 1.001 + 1e-6 * float(problem.target.square().sum())


@pytest.mark.parametrize("impl", ["reference", "torch", "cpu"])
def test_never_worse_than_one_expert(impl: str) -> None:
    case = make(7, rows=6, number=3, vocabulary=80, kinds=(Weighting.KL_JOINT, Weighting.STATIC))
    single = make(7, rows=6, number=3, vocabulary=80, kinds=(Weighting.KL, Weighting.STATIC)).fuse("reference")
    out = case.fuse(impl)
    for i in range(0, 6, 2):
        used = case.use[i].nonzero().flatten().tolist()
        if used:
            problem = case.row(i, used)
            losses = [
                reference.objective(problem.at(found.alpha[i, used].tolist()), problem.target)
                for found in (out, single)
            ]
            assert float(losses[0]) <= float(losses[1]) * (1 + 1e-4) + 1e-6
    torch.testing.assert_close(out.alpha[1::2], single.alpha[1::2])


def test_equal_experts_share_the_weight() -> None:
    case = make(3, rows=1, number=2, kinds=(Weighting.KL_JOINT,))
    case.use.fill_(True)
    case.experts[1] = case.experts[0].clone()
    one, two = case.fuse("torch").alpha[0].tolist()
    assert one == pytest.approx(two, rel=1e-2)
