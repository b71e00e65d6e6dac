"""All weights at once: never worse than the best single expert, and as good as a dense search of the square."""

import pytest
import torch

from bench.cases import Case, make
from evaluation.joint_search import fuse_jointly
from fusion_kernels import Weighting, reference


def joint(case: Case, limit: float) -> torch.Tensor:
    return fuse_jointly(case.large, case.against[0], case.experts, limit)[1]


def every_expert(seed: int, rows: int, number: int, vocabulary: int) -> Case:
    case = make(seed, rows=rows, number=number, vocabulary=vocabulary, kinds=(Weighting.KL,))
    case.use.fill_(True)
    case.alpha_max.fill_(2.0)
    return case


@pytest.mark.parametrize("seed", range(3))
def test_as_good_as_a_dense_search_over_two_weights(seed: int) -> None:
    case = every_expert(seed, rows=3, number=2, vocabulary=40)
    for i, alpha in enumerate(joint(case, 2.0).tolist()):
        problem = case.row(i, [0, 1])
        axis = torch.linspace(0, 2.0, 21, dtype=torch.float64).tolist()
        dense = min(float(reference.objective(problem.at([x, y]), problem.target)) for x in axis for y in axis)
        found = float(reference.objective(problem.at(alpha), problem.target))
        assert found <= dense * 1.001 + 1e-6 * float(problem.target.square().sum())


def test_never_worse_than_one_expert() -> None:
    case = every_expert(7, rows=6, number=3, vocabulary=80)
    pairs = zip(joint(case, 2.0).tolist(), case.fuse("reference").alpha.tolist(), strict=True)
    for i, (together, single) in enumerate(pairs):
        problem = case.row(i, [0, 1, 2])
        losses = [float(reference.objective(problem.at(alpha), problem.target)) for alpha in (together, single)]
        assert losses[0] <= losses[1] * (1 + 1e-4) + 1e-6


def test_equal_experts_share_the_weight() -> None:
    case = every_expert(3, rows=1, number=2, vocabulary=97)
    case.experts[1] = case.experts[0].clone()
    one, two = joint(case, 2.0)[0].tolist()
    assert one == pytest.approx(two, rel=1e-2)


def test_the_logits_are_those_of_the_weights() -> None:
    case = make(5, rows=4, number=2, paddings=(6, 3, 0))
    logits, alpha = fuse_jointly(case.large, case.against[0], case.experts, 2.0)
    expected, common = case.large.clone(), case.common()
    for t, expert in enumerate(case.experts):
        expected[:, :common] += alpha[:, t, None] * (expert[:, :common] - case.against[t][:, :common])
    torch.testing.assert_close(logits, expected)
