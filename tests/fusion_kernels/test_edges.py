"""Numbers that break naive code, and the promises about rows that are not fused."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.cases import AGAINST, DTYPES, KINDS, judge, make
from fusion_kernels import Fused, Weighting, fuse_logits
from fusion_kernels.batch import broken_against, broken_expert, expert_of
from tests.fusion_kernels.strategies import equally_good

IMPLEMENTATIONS = ["reference", "torch", "cpu"]
SEARCHED = [Weighting.KL, Weighting.KL_GRID]


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    return request.param  # type: ignore[no-any-return]


def fuse(large: Tensor, base: Tensor, expert: Tensor, kind: Weighting, impl: str, alpha: float = 1.0) -> Fused:
    rows = len(large)
    return fuse_logits(
        large,
        base,
        [expert],
        kind=torch.full((rows,), kind, dtype=torch.int8),
        use=torch.ones(rows, 1, dtype=torch.bool),
        alpha=torch.full((rows, 1), alpha),
        alpha_max=torch.full((rows,), 2.0),
        impl=impl,
    )


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("kind", SEARCHED)
def test_expert_equal_to_base_changes_nothing(kind: Weighting, impl: str) -> None:
    large, base = random(3, 50), random(3, 50, seed=1)
    out = fuse(large, base, base.clone(), kind, impl)
    assert torch.equal(out.logits, large)
    assert not out.alpha.any()
    assert not out.fallback.any()


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf])
@pytest.mark.parametrize("member", ["base", "expert"])
@pytest.mark.parametrize("kind", [Weighting.STATIC, *SEARCHED])
def test_a_broken_member_costs_its_row_only(bad: float, member: str, kind: Weighting, impl: str) -> None:
    large, members = random(3, 50), {"base": random(3, 50, seed=1), "expert": random(3, 50, seed=2)}
    clean = fuse(large, members["base"], members["expert"], kind, impl)
    members[member][1, 7] = bad
    out = fuse(large, members["base"], members["expert"], kind, impl)
    assert out.fallback.tolist() == [False, True, False]
    assert torch.equal(out.logits[1], large[1])
    assert float(out.alpha[1, 0]) == 0
    for row in (0, 2):
        assert torch.equal(out.logits[row], clean.logits[row])


@pytest.mark.parametrize("kind", [Weighting.STATIC, *SEARCHED, Weighting.ALONE])
def test_the_broken_member_is_named(kind: Weighting, impl: str) -> None:
    case = make(0, rows=5, number=2, kinds=(kind,))
    case.use[:] = True if kind != Weighting.ALONE else torch.tensor([False, True])
    case.experts[0][1, 3] = torch.nan
    case.experts[1][2, 5] = torch.inf
    case.against[0][3, 2] = torch.nan
    case.against[0][4, 1] = case.experts[1][4, 7] = torch.nan
    base, first, second = broken_against(0), broken_expert(0), broken_expert(1)
    expected = [0, 0, second, 0, second] if kind == Weighting.ALONE else [0, first, second, base, base]
    out = case.fuse(impl)
    assert out.broken.tolist() == expected
    assert out.fallback.tolist() == [bool(number) for number in expected]
    for row in out.fallback.nonzero().flatten():
        assert torch.equal(out.logits[row], case.large[row].float()), "the large model alone"


@pytest.mark.parametrize("kind", [Weighting.STATIC, *SEARCHED, Weighting.KL_SAFE])
def test_the_first_broken_comparison_is_named(kind: Weighting, impl: str) -> None:
    case = make(0, rows=6, number=3, kinds=(kind,), against=("own", "base"))
    case.use[:] = True
    case.experts[0][0, 3] = case.against[1][0, 5] = torch.nan
    case.against[1][1, 5] = case.experts[1][1, 5] = torch.inf
    case.experts[1][2, 5] = case.against[2][2, 0] = torch.nan
    case.against[2][3, 0] = torch.nan
    case.against[0][4, 1] = case.experts[0][4, 1] = torch.nan
    expected = [broken_expert(0), broken_against(1), broken_expert(1), broken_against(2), broken_against(0), 0]
    assert case.fuse(impl).broken.tolist() == expected
    assert [expert_of(number) for number in expected[:-1]] == [0, 1, 1, 2, 0]


def test_a_shared_base_is_named_by_the_first_expert_in_use(impl: str) -> None:
    case = make(0, rows=3, number=3, kinds=(Weighting.KL,))
    case.use[:] = torch.tensor([[True, True, True], [False, True, True], [False, False, True]])
    case.against[0].fill_(torch.nan)
    assert case.fuse(impl).broken.tolist() == [broken_against(t) for t in range(3)]


def test_what_a_row_does_not_need_may_be_broken(impl: str) -> None:
    case = make(
        0, rows=4, number=2, kinds=(Weighting.KL, Weighting.NONE, Weighting.ALONE, Weighting.STATIC), against=AGAINST
    )
    case.use[:] = torch.tensor([[True, False], [True, True], [False, True], [True, False]])
    clean = case.fuse(impl)
    case.against[1].fill_(torch.inf)
    case.against[0][1:3] = torch.nan
    out = case.fuse(impl)
    for found, expected in zip(out, clean, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", [Weighting.STATIC, *SEARCHED, Weighting.KL_SAFE])
def test_compared_with_nothing_is_compared_with_the_uniform_distribution(kind: Weighting, impl: str) -> None:
    large, expert, zeros = random(3, 50), random(3, 50, seed=1), torch.zeros(1, 50)
    out = fuse(large, zeros.expand(3, -1), expert, kind, impl)
    written_out = fuse(large, zeros.repeat(3, 1), expert, kind, impl)
    for found, expected in zip(out, written_out, strict=True):
        assert torch.equal(found, expected)
    log_q = expert.log_softmax(1)
    target = torch.stack([math.log(50) + (log_q.exp() * log_q).sum(1), -math.log(50) - log_q.mean(1)], dim=1)
    torch.testing.assert_close(out.kl_target, target, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.logits, large + out.alpha * expert, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_tensor_is_that_tensor_for_every_expert(dtype: torch.dtype, impl: str) -> None:
    case = make(0, rows=12, number=3, dtype=dtype)
    copies = replace(case, against=[against.clone() for against in case.against])
    settings = {"kind": case.kind, "use": case.use, "alpha": case.alpha, "alpha_max": case.alpha_max}
    one = fuse_logits(case.large, case.against[0], case.experts, **settings, impl=impl)
    for result in zip(case.fuse(impl), copies.fuse(impl), one, strict=True):
        assert torch.equal(result[0], result[1])
        assert torch.equal(result[0], result[2])


def test_comparisons_in_any_order(impl: str) -> None:
    case = make(3, rows=12, number=4, against=("base", "own", "nothing"))
    out = case.fuse(impl)
    order = [3, 1, 0, 2]
    sorted_otherwise = replace(
        case,
        against=[case.against[t] for t in order],
        experts=[case.experts[t] for t in order],
        use=case.use[:, order],
        alpha=case.alpha[:, order],
    ).fuse(impl)
    rows = case.kind != Weighting.ALONE  # which takes the first
    torch.testing.assert_close(sorted_otherwise.alpha[rows], out.alpha[rows][:, order], rtol=0, atol=1e-3)
    torch.testing.assert_close(sorted_otherwise.logits[rows], out.logits[rows], rtol=0, atol=1e-2)


def test_formats_may_differ(impl: str) -> None:
    case = make(8, rows=len(KINDS), number=3, against=AGAINST, dtype=torch.bfloat16)
    case.against[1], case.experts[2] = case.against[1].float(), case.experts[2].half()
    judge(case, impl)


def test_a_broken_expert_harms_no_row_that_does_not_use_it(impl: str) -> None:
    case = make(0, rows=4, number=2, kinds=(Weighting.KL, Weighting.NONE, Weighting.ALONE, Weighting.STATIC))
    case.use[:] = torch.tensor([True, False])
    clean = case.fuse(impl)
    case.experts[1].fill_(torch.nan)
    out = case.fuse(impl)
    assert not out.fallback.any()
    assert torch.equal(out.logits, clean.logits)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_large_row_passes_through(bad: float, impl: str) -> None:
    large = random(2, 50)
    large[0, 3] = bad
    out = fuse(large, random(2, 50, seed=1), random(2, 50, seed=2), Weighting.KL, impl)
    assert torch.equal(out.logits[0].nan_to_num(5e4), large[0].nan_to_num(5e4))
    assert out.fallback.tolist() == [False, False]
    assert float(out.alpha[0, 0]) == 0


def test_masked_tokens(impl: str) -> None:
    large, base, expert = random(1, 50), random(1, 50, seed=1), random(1, 50, seed=2)
    large[0, 1], base[0, 2], expert[0, 3] = -torch.inf, -torch.inf, -torch.inf
    out = fuse(large, base, expert, Weighting.STATIC, impl, alpha=1.5)
    assert float(out.logits[0, 1]) == -torch.inf
    assert torch.equal(out.logits[0, 2:4], large[0, 2:4])
    assert bool(out.logits[0, 4:].isfinite().all())


@pytest.mark.parametrize("kind", SEARCHED)
def test_one_token_left(kind: Weighting, impl: str) -> None:
    large = torch.full((1, 50), -torch.inf)
    large[0, 4] = 2.0
    out = fuse(large, random(1, 50, seed=1), random(1, 50, seed=2), kind, impl)
    assert float(out.alpha[0, 0]) == 0
    assert torch.equal(out.logits, large)


@pytest.mark.parametrize("kind", SEARCHED)
def test_nothing_left(kind: Weighting, impl: str) -> None:
    large = torch.full((1, 50), -torch.inf)
    out = fuse(large, random(1, 50, seed=1), random(1, 50, seed=2), kind, impl)
    assert torch.equal(out.logits, large)
    assert float(out.alpha[0, 0]) == 0


def test_large_that_equals_the_base_gets_weight_one(impl: str) -> None:
    base, expert = random(4, 200), random(4, 200, seed=2)
    out = fuse(base.clone(), base, expert, Weighting.KL, impl)
    torch.testing.assert_close(out.alpha, torch.ones(4, 1), atol=2e-3, rtol=0)


def test_vocabularies_of_unequal_length(impl: str) -> None:
    large, base, expert = random(2, 60), random(2, 50, seed=1), random(2, 55, seed=2)
    out = fuse(large, base, expert, Weighting.STATIC, impl)
    torch.testing.assert_close(out.logits[:, :50], large[:, :50] + expert[:, :50] - base)
    assert torch.equal(out.logits[:, 50:], large[:, 50:])
    alone = fuse(large, base, expert, Weighting.ALONE, impl)
    assert torch.equal(alone.logits[:, :55], expert)
    assert bool((alone.logits[:, 55:] == -torch.inf).all())
    assert alone.alpha.flatten().tolist() == [1, 1]


def test_rows_that_are_slices_of_wider_tensors(impl: str) -> None:
    wide = random(3, 300)
    out = fuse(wide[:, :100], wide[:, 100:200], wide[:, 200:], Weighting.KL, impl)
    large, base, expert = (wide[:, i : i + 100].contiguous() for i in (0, 100, 200))
    copied = fuse(large, base, expert, Weighting.KL, impl)
    assert torch.equal(out.logits, copied.logits)


def test_no_rows(impl: str) -> None:
    out = fuse(random(0, 10), random(0, 10), random(0, 10), Weighting.KL, impl)
    assert out.logits.shape == (0, 10)
    assert out.alpha.shape == (0, 1)


def test_alpha_max_zero_is_large_alone(impl: str) -> None:
    case = make(1, rows=2, kinds=tuple(SEARCHED))
    case.alpha_max.zero_()
    assert torch.equal(case.fuse(impl).logits, case.large)


def test_a_search_that_begins_at_zero_leaves_it(impl: str) -> None:
    """The objective is level at weight 0, though its minimum lies beyond: targets so small that the guess is 0."""
    logits = [[9.696929, 7.386314, 4.486578], [5.003168, 13.173132, 0.5295098], [5.149349, 21.986645, -2.2266228]]
    large, base, expert = (torch.tensor([row]) for row in logits)
    out = fuse(large, base, expert, Weighting.KL, impl)
    assert float(out.alpha) == pytest.approx(0.0191, rel=0.1)


def test_of_equally_good_experts_the_first_is_taken(impl: str) -> None:
    out, want = (equally_good().fuse(which) for which in (impl, "reference"))
    assert (want.alpha[:, 0] == 1.0).sum() > 5
    assert torch.equal(out.alpha, want.alpha)
    assert not (out.alpha[:, 1] == 1.0).any()
