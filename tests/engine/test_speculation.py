"""Who drafts, which drafts are accepted, which tokens reach the client, and what is leaned on in vLLM for it."""

from __future__ import annotations

import dataclasses
import inspect
import random
from typing import Any

import pytest
import torch
from vllm import SamplingParams

from fusion_kernels import Weighting
from server.engine.settings import FusionSettings
from server.engine.speculation.drafter import with_drafter
from server.engine.speculation.ends import AnswerEnds
from server.engine.speculation.sampler import compare

EXPERTS = ["red", "blue"]


@pytest.mark.parametrize(
    ("settings", "draft", "drafter", "run"),
    [
        (FusionSettings(), "auto", 0, (0,)),
        (FusionSettings(Weighting.KL, (1,)), "auto", 2, (0, 2)),
        (FusionSettings(Weighting.KL, (0, 1)), "auto", 1, (0, 1, 2)),
        (FusionSettings(Weighting.STATIC, (0, 1), (0.2, 0.9)), "auto", 2, (0, 1, 2)),
        (FusionSettings(Weighting.STATIC, (0,), (-1.0,)), "auto", 0, (0, 1)),
        (FusionSettings(Weighting.ALONE, (1,)), "auto", 2, (2,)),
        (FusionSettings(Weighting.ALONE, (1,)), "base", 0, (0, 2)),
        (FusionSettings(), "blue", 2, (2,)),
    ],
)
def test_who_drafts(settings: FusionSettings, draft: str, drafter: int, run: tuple[int, ...]) -> None:
    drafted = with_drafter(settings, draft, EXPERTS, has_base=True)
    assert drafted.drafter == drafter
    assert drafted.members_run == run
    assert drafted.members_used == settings.members_used, "drafting steers nothing"
    params = SamplingParams()
    drafted.attach(params)
    assert FusionSettings.of(params) == drafted


@pytest.mark.parametrize("seed", range(20))
def test_drafts_are_accepted_up_to_the_first_that_differs(seed: int) -> None:
    rng = random.Random(seed)
    width = rng.randint(2, 6)
    sizes = [rng.randint(1, width) for _ in range(rng.randint(1, 9))]
    starts = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()], dtype=torch.int32)
    tokens = torch.tensor([rng.randint(0, 2) for _ in range(sum(sizes))])
    # The first row of a request has read no draft; -1 stands for one that must not be taken.
    read = torch.tensor([rng.choice([0, 1, 2, -1]) for _ in tokens])
    sampled, number = compare(tokens, read, starts, width)
    for request, size in enumerate(sizes):
        first = int(starts[request])
        accepted = 0
        while accepted < size - 1 and read[first + accepted + 1] == tokens[first + accepted]:
            accepted += 1
        assert int(number[request]) == accepted + 1
        assert sampled[request, : accepted + 1].tolist() == tokens[first : first + accepted + 1].tolist()


def _delivered(params: SamplingParams, sampled: list[int], valid: int, first: int, **where: Any) -> int:
    ends = AnswerEnds(3, torch.device("cpu"))
    ends.add(1, params, **{"num_prompt_tokens": 10, "max_model_len": 100, **where})
    found = ends.delivered(torch.tensor([1]), torch.tensor([sampled]), torch.tensor([valid]), torch.tensor([first]))
    return int(found[0])


def test_tokens_past_an_end_reach_nobody() -> None:
    params = SamplingParams(max_tokens=5, stop_token_ids=[7])
    assert _delivered(params, [1, 2, 3, 4], 4, first=9) == 4
    assert _delivered(params, [1, 2, 3, 4], 2, first=9) == 2, "the other two were rejected"
    assert _delivered(params, [1, 7, 3, 4], 4, first=9) == 2, "the end itself is a token"
    assert _delivered(params, [7, 7, 3, 4], 4, first=9) == 1
    assert _delivered(params, [1, 2, 7, 4], 2, first=9) == 2, "an end among the rejected is none"
    # Prompt of 10, five tokens: the rows at positions 9 to 13 give them.
    assert _delivered(params, [1, 2, 3, 4], 4, first=12) == 2
    assert _delivered(SamplingParams(max_tokens=500), [1, 2, 3, 4], 4, first=97) == 2, "the context ends at 100"
    many = SamplingParams(max_tokens=5, stop_token_ids=list(range(20, 40)))
    assert _delivered(many, [1, 39, 3, 4], 4, first=9) == 2


def test_an_end_of_the_model_counts_unless_it_is_ignored() -> None:
    params = SamplingParams(max_tokens=9)
    params.update_from_generation_config({}, 2)
    assert _delivered(params, [1, 2, 3, 4], 4, first=9) == 2
    ignoring = SamplingParams(max_tokens=9, ignore_eos=True)
    ignoring.update_from_generation_config({}, 2)
    assert _delivered(ignoring, [1, 2, 3, 4], 4, first=9) == 4


def test_what_is_leaned_on_in_vllm() -> None:
    """A worker whose runner makes its speculator in `init_device` and asks it for drafts with these arguments."""
    from vllm.v1.worker.gpu import model_runner
    from vllm.v1.worker.gpu.spec_decode.speculator import BaseSpeculator, DraftModelSpeculator
    from vllm.v1.worker.gpu_worker import Worker

    from server.engine.speculation.speculator import MemberSpeculator

    ours, theirs = (inspect.signature(cls.propose).parameters for cls in (MemberSpeculator, BaseSpeculator))
    assert list(ours) == list(theirs)
    assert {"init_device", "load_model", "take_draft_token_ids"} <= vars(Worker).keys()
    source = inspect.getsource(model_runner)
    for line in (
        "self.speculator = init_speculator(",
        "custom = self.model_state.custom_sampler(self.sampler)",
        "self.sampler, self.rejection_sampler = custom",
        "isinstance(self.speculator, DraftModelSpeculator)",
    ):
        assert line in source, line
    assert not issubclass(MemberSpeculator, DraftModelSpeculator), "vLLM would load a model for it"


def test_what_the_scheduler_leans_on_in_vllm() -> None:
    """That the runner drafts as many tokens as the scheduler's output says, and that the schedule says no more."""
    from vllm.v1.core.sched import scheduler
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.worker.gpu import model_runner

    assert "num_spec_tokens_to_schedule" in {field.name for field in dataclasses.fields(SchedulerOutput)}
    asked = inspect.getsource(model_runner).count("num_spec_tokens_to_schedule=scheduler_output.")
    assert asked == 1, "it does not take the number from the step"
    used = inspect.getsource(scheduler)
    assert used.count("self.dynamic_sd_lookup") == 5, "the schedule is used for more than the number, or for less"
    assert "num_spec_tokens_to_schedule=num_spec_tokens_to_schedule" in used
