"""`KL_SAFE`: what an expert keeps of its weight, and that every version says so."""

import pytest
import torch

from bench.cases import AGAINST, Case, make
from fusion_kernels import Weighting, reference

IMPLEMENTATIONS = ["reference", "torch", "cpu"]


def safe(seed: int, number: int = 1) -> Case:
    case = make(seed, rows=4, number=number, kinds=(Weighting.KL_SAFE,))
    case.use.fill_(True)
    case.alpha_max.fill_(2.0)
    return case


def kinds(case: Case, kind: Weighting) -> Case:
    case.kind.fill_(kind)
    return case


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_sure_expert_keeps_the_weight_of_kl(impl: str) -> None:
    case = safe(1)
    case.against[0] *= 0.01
    case.experts = [case.against[0].clone()]
    case.experts[0][:, 5] += 40.0
    out, exact = case.fuse(impl), kinds(case, Weighting.KL).fuse("reference")
    torch.testing.assert_close(out.alpha, exact.alpha, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_an_unsure_expert_moves_next_to_nothing(impl: str) -> None:
    """Nearly its base and nearly flat: the objective is met only by a large weight, which is not given."""
    case = safe(2)
    base = case.against[0].mul_(0.001)
    case.experts = [base + 0.02 * torch.randn(base.shape, generator=torch.Generator().manual_seed(0))]
    assert float(case.fuse(impl).alpha.abs().max()) < 2e-2


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_an_expert_without_anything_to_say_takes_nothing_from_the_others(impl: str) -> None:
    alone, joined = safe(3), safe(3)
    joined.against, joined.experts = alone.against * 2, [*alone.experts, alone.against[0].clone()]
    joined.use, joined.alpha = torch.ones(4, 2, dtype=torch.bool), torch.zeros(4, 2)
    one, two = alone.fuse(impl), joined.fuse(impl)
    torch.testing.assert_close(two.alpha[:, 0], one.alpha[:, 0])
    torch.testing.assert_close(two.logits, one.logits)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_experts_equal_to_the_base_change_nothing(impl: str) -> None:
    case = safe(4, number=3)
    case.experts = [against.clone() for against in case.against]
    out = case.fuse(impl)
    assert float(out.alpha.abs().max()) == 0.0
    torch.testing.assert_close(out.logits, case.large.float(), rtol=0, atol=0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_each_expert_is_solved_for_what_it_is_compared_with_itself(impl: str) -> None:
    joined = make(5, rows=4, number=3, kinds=(Weighting.KL_SAFE,), against=AGAINST)
    joined.use.fill_(True)
    joined.alpha_max.fill_(2.0)
    out = joined.fuse(impl)
    for t in range(3):
        alone = safe(5)
        alone.large, alone.against, alone.experts = joined.large, [joined.against[t]], [joined.experts[t]]
        torch.testing.assert_close(alone.fuse(impl).alpha[:, 0], out.alpha[:, t])


def test_trust_is_the_root_of_the_explained_share_of_the_bases_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(5)
    base, expert = torch.randn(2, 50, generator=generator, dtype=torch.float64).log_softmax(1)
    row = reference.Row(torch.zeros(50), [base], [expert])
    entropy, cross = -(expert.exp() * expert).sum(), -(expert.exp() * base).sum()
    assert float(reference.trust(row.targets, row.entropies)) == pytest.approx(float(1 - entropy / cross) ** 0.5)
