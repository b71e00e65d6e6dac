"""The settings by slot: what a request asked reaches every row of its slot, and no other."""

from __future__ import annotations

import pytest
import torch
from vllm import SamplingParams

from fusion_kernels import Weighting
from server.engine.settings import FusionSettings
from server.engine.slots import Slot, SlotTable

SLOTS = 6
CPU = torch.device("cpu")


def table() -> SlotTable:
    return SlotTable(SLOTS, 2, CPU)


def numbered(number: int) -> Slot:
    """A request that its settings tell apart."""
    return Slot(FusionSettings(Weighting.STATIC, (number % 2,), (float(number),), alpha_max=number + 0.5), 1)


def test_empty_slots_run_the_large_model_alone() -> None:
    rows = table().rows(torch.arange(SLOTS))
    assert rows.kind.tolist() == [Weighting.NONE] * SLOTS
    assert not rows.use.any()


def test_settings_reach_every_row_of_the_slot() -> None:
    slots = table()
    for index in range(3):
        slots.add(index, numbered(index))
    slots.flush()
    rows = slots.rows(torch.tensor([0, 0, 1, 2, 2, 2]))
    assert rows.alpha_max.tolist() == [0.5, 0.5, 1.5, 2.5, 2.5, 2.5]
    assert rows.alpha.sum(1).tolist() == [0.0, 0.0, 1.0, 2.0, 2.0, 2.0]
    assert rows.use.tolist() == [[True, False]] * 2 + [[False, True]] + [[True, False]] * 3


def test_a_slot_taken_again_keeps_nothing_of_the_last_request() -> None:
    slots = table()
    slots.add(3, Slot(FusionSettings(Weighting.STATIC, (0, 1), (1.0, 2.0), trace="a/0"), 5))
    assert slots.traced == 1
    slots.remove(3)
    assert slots.traced == 0
    slots.add(3, Slot(FusionSettings(), 2))
    slots.flush()
    rows = slots.rows(torch.tensor([3]))
    assert rows.kind.tolist() == [Weighting.NONE]
    assert not rows.use.any()
    assert not rows.alpha.any()
    assert not slots.members_run[3].any()


@pytest.mark.parametrize(
    ("settings", "members"),
    [
        (FusionSettings(), []),
        (FusionSettings(Weighting.KL, (1,)), [0, 2]),
        (FusionSettings(Weighting.STATIC, (1, 0), (1.0, 1.0)), [0, 1, 2]),
        (FusionSettings(Weighting.ALONE, (1,)), [2]),
        (FusionSettings(Weighting.KL, ()), []),
    ],
)
def test_which_members_a_request_runs(settings: FusionSettings, members: list[int]) -> None:
    slots = table()
    slots.add(0, Slot(settings, 1))
    assert slots.members_run[0].nonzero()[0].tolist() == members
    assert list(settings.members_used) == members


def test_rows_over_some_of_the_experts() -> None:
    slots = table()
    slots.add(0, Slot(FusionSettings(Weighting.STATIC, (0, 1), (3.0, 4.0)), 1))
    slots.flush()
    rows = slots.rows(torch.tensor([0, 1])).of_experts([1])
    assert rows.alpha.tolist() == [[4.0], [0.0]]
    assert rows.use.tolist() == [[True], [False]]


def test_settings_travel_in_the_sampling_parameters() -> None:
    params = SamplingParams(temperature=0)
    settings = FusionSettings(Weighting.KL_SAFE, (1,), (), 1.5, 3, "key/0", True)
    settings.attach(params)
    assert FusionSettings.of(params) == settings
    assert FusionSettings.of(SamplingParams()) == FusionSettings()
