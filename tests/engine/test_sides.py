"""The logits on the sides of a call's pairs: each row has its own members', whatever the others have."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from server.engine.settings import ANY, BASE, LARGE, NOTHING
from server.engine.sides import Sides
from server.engine.step import MemberRows

ROWS, COMMON = 5, 120
TWIN, LATE = 4, 5


class Head:
    """A model whose logits say which member and which hidden state they are of."""

    def __init__(self, number: int, size: int) -> None:
        self.number, self.size, self.calls = number, size, 0

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return (hidden[:, :1] + 100 * self.number).expand(-1, self.size).contiguous()


def sides() -> Sides:
    """The base has rows 0 and 3, the large model's twin rows 1 and 3, another twin none yet."""
    large = torch.arange(ROWS).float()[:, None].expand(-1, 152).contiguous()
    models: dict[int, Any] = {BASE: Head(1, COMMON), TWIN: Head(4, 152), LATE: Head(5, 152)}
    rows: list[MemberRows | None] = [None] * 6
    rows[BASE] = MemberRows(torch.tensor([[0.0], [3.0]]), torch.tensor([0, 3]))
    rows[TWIN] = MemberRows(torch.tensor([[1.0], [3.0]]), torch.tensor([1, 3]))
    return Sides(large, models, rows, COMMON)


def first_column(logits: torch.Tensor) -> list[float]:
    found: list[float] = logits[:, 0].tolist()
    return found


def test_one_member_for_all_is_not_copied() -> None:
    logits = sides().experts(np.array([LARGE, ANY, LARGE, LARGE, LARGE]))
    assert first_column(logits) == [0, 1, 2, 3, 4]
    assert logits.shape == (ROWS, 152)
    assert first_column(sides().experts(np.array([BASE, ANY, ANY, BASE, ANY])))[::3] == [100, 103]


def test_rows_of_several_members() -> None:
    logits = sides().experts(np.array([LARGE, TWIN, LARGE, TWIN, ANY]))
    assert first_column(logits)[:4] == [0, 401, 2, 403]


def test_a_member_that_has_read_nothing_yet() -> None:
    """Its rows are of prompts that go on, whose logits nobody looks at; its vocabulary is none of theirs."""
    logits = sides().against(np.array([LATE, TWIN, LARGE, TWIN, LATE]))
    assert logits.shape == (ROWS, COMMON)
    assert first_column(logits)[1:4] == [401, 2, 403]
    assert sides().against(np.array([LATE] * ROWS)).shape == (ROWS, COMMON)


def test_what_is_compared_with_nothing_or_not_at_all() -> None:
    for member in (NOTHING, ANY):
        logits = sides().against(np.full(ROWS, member))
        assert logits.shape == (ROWS, COMMON)
        assert not logits.any()
        assert logits.stride(0) == 0


def test_experts_that_are_compared_with_the_same_get_the_same_tensor() -> None:
    found = sides()
    assert found.against(np.array([BASE] * ROWS)) is found.against(np.array([BASE] * ROWS))


def test_members_of_one_model_read_its_head_once() -> None:
    shared = Head(1, COMMON)
    rows: list[MemberRows | None] = [
        MemberRows(torch.arange(ROWS).float()[:, None], None),
        MemberRows(torch.tensor([[2.0], [4.0]]), torch.tensor([2, 4])),
        None,
        MemberRows(torch.tensor([[1.0]]), torch.tensor([1])),
    ]
    models: dict[int, Any] = {BASE: shared, 1: shared, 2: shared, 3: Head(3, COMMON)}
    found = Sides(torch.zeros(ROWS, COMMON), models, rows, COMMON)
    assert first_column(found.experts(np.array([BASE] * ROWS))) == [100, 101, 102, 103, 104]
    assert first_column(found.experts(np.array([ANY, ANY, 1, ANY, 1])))[2::2] == [102, 104]
    assert first_column(found.experts(np.array([BASE, 3, 1, BASE, 1]))) == [100, 301, 102, 103, 104]
    assert shared.calls == 1
