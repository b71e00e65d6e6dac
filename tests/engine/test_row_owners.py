"""The seam alone: which request owns a row, and with which settings, whatever rows vLLM slices out of a step."""

from __future__ import annotations

import random

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, LogitsProcessors, MoveDirectionality
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from fusion_kernels import Weighting
from server.engine.batch import BatchState
from server.engine.settings import FusionSettings

SLOTS = 6
CPU = torch.device("cpu")


def state(max_num_tokens: int = 64) -> BatchState:
    return BatchState(SLOTS, max_num_tokens, 2, CPU)


def params(settings: FusionSettings) -> SamplingParams:
    made = SamplingParams(temperature=0)
    settings.attach(made)
    return made


def numbered(number: int) -> FusionSettings:
    """Settings that tell their request's number."""
    return FusionSettings(Weighting.STATIC, (number % 2,), (float(number),), alpha_max=number + 0.5)


def begin(batch: BatchState, tokens_per_request: list[int]) -> torch.Tensor:
    """Begin a step in which each request has so many tokens; return the tags."""
    number = sum(tokens_per_request)
    starts = torch.tensor([0, *tokens_per_request], dtype=torch.int32).cumsum(0).int()
    return batch.begin_step(starts, torch.zeros(number, dtype=torch.int64), torch.arange(number))


class TestRows:
    """`places` and `owners`: from the tags on a row to its request."""

    def owners(self, tokens_per_request: list[int], rows: list[int]) -> list[int]:
        batch = state()
        tags = begin(batch, tokens_per_request).float()
        return batch.owners(batch.places(tags[rows])).tolist()

    def test_decode_one_row_each(self) -> None:
        assert self.owners([1, 1, 1], [0, 1, 2]) == [0, 1, 2]

    def test_last_positions_of_a_mixed_step(self) -> None:
        assert self.owners([1, 7, 1, 20], [0, 7, 8, 28]) == [0, 1, 2, 3]

    def test_prompt_logprobs_many_rows_of_one_request(self) -> None:
        assert self.owners([3, 9, 2], list(range(3, 11))) == [1] * 8

    def test_speculation_several_rows_of_each_in_any_order(self) -> None:
        # Three drafts and a bonus token each; rejection sampling takes the targets first and the bonus rows after.
        targets, bonus = [0, 1, 2, 4, 5, 6, 8, 9, 10], [3, 7, 11]
        assert self.owners([4, 4, 4], targets + bonus) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 1, 2]

    def test_speculation_with_unequal_numbers_of_drafts(self) -> None:
        assert self.owners([4, 1, 3], [0, 1, 2, 3, 4, 5, 6, 7]) == [0, 0, 0, 0, 1, 2, 2, 2]

    def test_padding_belongs_to_the_last_request(self) -> None:
        batch = state()
        starts = torch.tensor([0, 2, 5], dtype=torch.int32)
        tags = batch.begin_step(starts, torch.zeros(8, dtype=torch.int64), torch.arange(8))
        assert batch.owners(batch.places(tags.float())).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]

    def test_layout_padded_with_empty_requests(self) -> None:
        # CUDA graphs pad `query_start_loc` with its last value.
        batch = state()
        starts = torch.tensor([0, 2, 5, 5, 5], dtype=torch.int32)
        tags = batch.begin_step(starts, torch.zeros(5, dtype=torch.int64), torch.arange(5))
        assert batch.owners(batch.places(tags.float())).tolist() == [0, 0, 1, 1, 1]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_tags_are_exact_up_to_65536_tokens(self, dtype: torch.dtype) -> None:
        batch = BatchState(1, 65536, 1, CPU)
        tags = begin(batch, [65536]).to(dtype)
        assert torch.equal(batch.places(tags), torch.arange(65536))

    def test_more_tokens_than_tags_can_tell_apart_are_refused(self) -> None:
        with pytest.raises(ValueError, match="max_num_batched_tokens is 65537"):
            state(65537)

    def test_two_dimensional_positions(self) -> None:
        batch = state()
        tags = batch.begin_step(torch.tensor([0, 5]), torch.zeros(5), torch.zeros(3, 5))
        assert tags.shape == (5, 2)


class TestProfiling:
    """Steps whose rows belong to nobody."""

    def test_rows_have_the_dearest_settings(self) -> None:
        batch = state()
        tags = batch.begin_step(None, torch.zeros(4), torch.arange(4))
        assert batch.profiling
        assert tags.shape == (4, 2)
        rows = batch.profiling_rows(3)
        assert rows.kind.tolist() == [Weighting.KL] * 3
        assert rows.use.all()
        assert rows.alpha.shape == (3, 2)

    def test_a_step_after_it_is_real(self) -> None:
        batch = state()
        batch.begin_step(None, torch.zeros(4), torch.arange(4))
        begin(batch, [2, 2])
        assert not batch.profiling


class TestUpdates:
    """`update`: settings follow their request through the persistent batch."""

    def test_empty_slots_run_the_large_model_alone(self) -> None:
        rows = state().rows(torch.arange(SLOTS))
        assert rows.kind.tolist() == [Weighting.NONE] * SLOTS
        assert not rows.use.any()

    def test_settings_reach_every_row_of_the_request(self) -> None:
        batch = state()
        added = [(i, params(numbered(i)), [1, 2], list[int]()) for i in range(3)]
        batch.update(BatchUpdate(3, removed=[], added=added, moved=[]))
        tags = begin(batch, [2, 1, 3])
        rows = batch.rows(batch.owners(batch.places(tags.float())))
        assert rows.alpha_max.tolist() == [0.5, 0.5, 1.5, 2.5, 2.5, 2.5]
        assert rows.alpha.sum(1).tolist() == [0.0, 0.0, 1.0, 2.0, 2.0, 2.0]
        assert rows.use.tolist() == [[True, False]] * 2 + [[False, True]] + [[True, False]] * 3

    def test_removals_then_additions_then_moves(self) -> None:
        batch = state()
        added = [(i, params(numbered(i)), [1], list[int]()) for i in range(4)]
        batch.update(BatchUpdate(4, removed=[], added=added, moved=[]))
        batch.update(
            BatchUpdate(
                3,
                removed=[2],
                added=[(0, params(numbered(9)), [1], [])],
                moved=[(3, 2, MoveDirectionality.UNIDIRECTIONAL), (0, 1, MoveDirectionality.SWAP)],
            )
        )
        assert [slot and slot.settings.alpha_max for slot in batch.slots[:4]] == [1.5, 9.5, 3.5, None]
        assert batch.rows(torch.arange(4)).alpha_max.tolist() == [1.5, 9.5, 3.5, 2.0]

    def test_experts_in_use_are_those_of_the_running(self) -> None:
        batch = state()
        batch.update(BatchUpdate(1, removed=[], added=[(0, params(numbered(1)), [1], [])], moved=[]))
        assert batch.experts_in_use == [1]
        batch.update(BatchUpdate(0, removed=[0], added=[], moved=[]))
        assert batch.experts_in_use == []


class Listener(LogitsProcessor):
    """Passes changes on to a `BatchState`, as `FusionSettingsTracker` does."""

    def __init__(self, batch: BatchState) -> None:
        self._batch = batch

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is not None:
            self._batch.update(batch_update)

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


@pytest.mark.parametrize("seed", range(20))
def test_it_follows_vllms_own_batch(seed: int) -> None:
    """Requests come, go, return and swap at random in vLLM's `InputBatch`; every index keeps its request's settings."""
    rng = random.Random(seed)
    batch = state()
    vllm_batch = InputBatch(
        max_num_reqs=SLOTS,
        max_model_len=32,
        max_num_batched_tokens=64,
        device=CPU,
        vocab_size=16,
        block_sizes=[16],
        max_num_blocks_per_req=[2],
        logitsprocs=LogitsProcessors([Listener(batch)]),
    )
    requests: dict[str, CachedRequestState] = {}
    waiting: list[str] = []
    for step in range(300):
        for name in [*vllm_batch.req_id_to_index]:
            fate = rng.random()
            if fate < 0.25:
                vllm_batch.remove_request(name)
                # Some are preempted, or left out of a step, and come back.
                if fate < 0.15:
                    waiting.append(name)
                else:
                    del requests[name]
        for _ in range(rng.randint(0, 3)):
            name = f"request-{len(requests)}-{step}-{rng.random()}"
            number = rng.randint(0, 1000)
            requests[name] = CachedRequestState(
                req_id=name,
                prompt_token_ids=[1] * rng.randint(1, 8),
                mm_features=[],
                sampling_params=params(numbered(number)),
                generator=None,
                block_ids=([],),
                num_computed_tokens=0,
                output_token_ids=[],
            )
            waiting.append(name)
        rng.shuffle(waiting)
        while waiting and vllm_batch.num_reqs < SLOTS:
            vllm_batch.add_request(requests[waiting.pop()])
        vllm_batch.condense()
        if vllm_batch.num_reqs > 1 and rng.random() < 0.3:
            vllm_batch.swap_states(*rng.sample(range(vllm_batch.num_reqs), 2))
        vllm_batch.refresh_metadata()  # type: ignore[no-untyped-call]

        assert len(vllm_batch.req_ids) == vllm_batch.num_reqs
        rows = batch.rows(torch.arange(SLOTS))
        for index, name in enumerate(vllm_batch.req_ids):
            made = requests[name].sampling_params
            assert made is not None
            settings, slot = FusionSettings.of(made), batch.slots[index]
            assert slot is not None
            assert slot.settings == settings
            assert slot.num_prompt_tokens == requests[name].num_prompt_tokens
            assert float(rows.alpha_max[index]) == settings.alpha_max
            assert float(rows.alpha[index, settings.experts[0]]) == settings.alpha[0]
        assert batch.slots[vllm_batch.num_reqs :] == [None] * (SLOTS - vllm_batch.num_reqs)
