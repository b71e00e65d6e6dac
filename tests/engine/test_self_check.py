"""The server's check of itself: what a worker says of steps that are right, and of steps that are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fusion_kernels import Fused, Weighting, fuse_logits
from fusion_kernels.batch import Batch
from server.engine import self_check
from server.engine.self_check import Judgement, Step, judge
from server.errors import ServerError


def batch(rows: int = 2, experts: int = 3, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(rows)
    large, base, *others = ((torch.randn(rows, 200, generator=generator) * 20).to(dtype) for _ in range(2 + experts))
    return Batch(
        large,
        [base] * experts,
        others,
        torch.full((rows,), Weighting.STATIC, dtype=torch.int8),
        torch.ones(rows, experts, dtype=torch.bool),
        torch.tensor([[1.0, -0.8, 0.64][:experts]] * rows),
        torch.full((rows,), 2.0),
    )


def step(of: Batch) -> Step:
    return Step(of, fuse_logits(*of[:3], kind=of.kind, use=of.use, alpha=of.alpha, alpha_max=of.alpha_max))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_step_is_right(dtype: torch.dtype) -> None:
    right = step(batch(dtype=dtype))
    assert judge([right]) == Judgement([[int(token)] for token in right.fused.logits.argmax(-1)], [])


@pytest.mark.parametrize("member", [0, 1, 2])
def test_a_broken_member_is_no_fault_of_the_engines(member: int) -> None:
    broken = batch()
    [broken.large, broken.against[0], broken.experts[0]][member].fill_(torch.nan)
    assert judge([step(broken)]).faults == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda right: right.fused._replace(logits=right.batch.large.float()),
        lambda right: right.fused._replace(logits=right.fused.logits * float("nan")),
        lambda right: step(right.batch._replace(experts=right.batch.experts[::-1])).fused,
        lambda right: step(right.batch._replace(alpha=right.batch.alpha * 1.01)).fused,
    ],
    ids=["large alone", "nan", "experts that trade places", "another weight"],
)
def test_a_wrong_step_is_told(spoil: Callable[[Step], Fused]) -> None:
    right = step(batch())
    (fault,) = judge([right._replace(fused=spoil(right))]).faults
    assert fault.startswith("static: fused logits are off by")


def test_a_wrong_kernel_is_told_by_its_weighting(monkeypatch: pytest.MonkeyPatch) -> None:
    right = step(batch())

    def wrong(*members: object, kind: torch.Tensor, **settings: torch.Tensor) -> Fused:
        fused = fuse_logits(*members, kind=kind, **settings)  # type: ignore[arg-type]
        return fused._replace(logits=fused.logits + 0.5 * (kind == Weighting.KL)[:, None])

    monkeypatch.setattr(self_check, "fuse_logits", wrong)
    (fault,) = judge([right]).faults
    assert fault.startswith("kl: fused logits are off by 0.5")


def decoded(spoiled: int | None = None) -> list[Step]:
    """One row each: four steps that generate, and the last one's token read as a prompt; `spoiled` is a member."""
    last = batch(rows=1)
    again = last._replace(
        large=last.large.clone(),
        against=[last.against[0].clone()] * len(last.experts),
        experts=[expert.clone() for expert in last.experts],
    )
    if spoiled is not None:
        logits = [again.large, again.against[0], *again.experts][spoiled]
        logits.copy_(logits.roll(1, dims=1))
    return [step(each) for each in (batch(rows=1),) * 3 + (last, again)]


def test_what_was_generated_is_what_is_read() -> None:
    steps = decoded()
    assert judge(steps).faults == []
    # Rounding of another kernel.
    steps[-1] = step(steps[-1].batch._replace(large=steps[-1].batch.large * 1.001))
    assert judge(steps).faults == []


@pytest.mark.parametrize(("member", "name"), [(0, "the large model"), (1, "the base"), (3, "expert 1")])
def test_a_member_that_generates_from_other_states(member: int, name: str) -> None:
    (fault,) = judge(decoded(member)).faults
    assert fault.startswith(f"{name} is ")
    assert "nats off while it generates" in fault


def test_equal_logits_may_fall_either_way() -> None:
    level = batch(rows=1, experts=1)
    level.large.zero_()
    level.against[0].copy_(level.experts[0])
    assert judge([step(level)]).tokens == [list(range(200))]


@pytest.mark.parametrize(
    ("judged", "words"),
    [
        ([], "answered by the large model alone"),
        ([Judgement([[5]], ["kl: off"])], "kl: off"),
        ([Judgement([[7]], [])], r"sampled tokens \[5\], the fused logits' likeliest are \[\[7\]\]"),
        ([Judgement([[5], [5]], [])], r"sampled tokens \[5\], .* are \[\[5\], \[5\]\]"),
    ],
)
def test_what_ends_the_start(judged: list[Judgement], words: str) -> None:
    with pytest.raises(ServerError, match=words):
        self_check._compare([5], judged)
    self_check._compare([5], [Judgement([[4, 5]], [])])


def test_two_engines_may_have_a_request_each() -> None:
    tokens = [3, 1, 4, 1, 5]
    judged = [Judgement([[3], [1], [4], [1]], []), Judgement([[5]], [])]
    self_check._compare(tokens, judged)
    with pytest.raises(ServerError, match=r"sampled tokens \[5\]"):
        self_check._compare(tokens, [judged[0], Judgement([[6]], [])])
