"""A member's sub-batch, against a plain loop over requests, for random batches: chunks, decodes, drafts, padding."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import vllm.v1.worker.cpu.shm  # noqa: F401 (as vLLM's CPU worker does, before the runner's modules)
from vllm.v1.worker.gpu.input_batch import InputBatch

from server.engine.sub_batch import SubBatch, joined, restrict

SLOTS, BLOCKS, GROUPS = 8, 5, 2


def draw_batch(rng: random.Random, drafts: bool, padded: bool) -> InputBatch:
    """A step as the model runner lays it out: `drafts` gives requests several rows of logits."""
    requests = rng.randint(1, SLOTS)
    lengths = np.array([rng.choice([1, 1, 1, rng.randint(1, 9)]) for _ in range(requests)], dtype=np.int32)
    logits = np.array([rng.randint(1, int(n)) if drafts else 1 for n in lengths], dtype=np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    logit_starts = np.concatenate([[0], np.cumsum(logits)]).astype(np.int32)
    slots = np.array(rng.sample(range(SLOTS), requests), dtype=np.intp)
    computed = np.array([rng.randint(0, 20) for _ in range(requests)], dtype=np.int32)
    tokens = int(starts[-1])
    extra_requests, extra_tokens = (2, 3) if padded else (0, 0)
    positions = np.concatenate([computed[i] + np.arange(lengths[i]) for i in range(requests)])
    logits_indices = np.concatenate([starts[i + 1] - logits[i] + np.arange(logits[i]) for i in range(requests)])
    return InputBatch(
        req_ids=[f"r{i}" for i in range(requests)],
        num_reqs=requests,
        num_reqs_after_padding=requests + extra_requests,
        idx_mapping=torch.from_numpy(slots).long(),
        idx_mapping_np=slots,
        expanded_idx_mapping=torch.from_numpy(np.repeat(slots, logits)).long(),
        expanded_local_pos=torch.zeros(int(logit_starts[-1]), dtype=torch.int32),
        num_scheduled_tokens=lengths,
        num_tokens=tokens,
        num_tokens_after_padding=tokens + extra_tokens,
        num_draft_tokens=int((logits - 1).sum()),
        num_draft_tokens_per_req=logits - 1,
        query_start_loc=torch.from_numpy(np.concatenate([starts, np.full(extra_requests, tokens)])).int(),
        query_start_loc_np=np.concatenate([starts, np.full(extra_requests, tokens, dtype=np.int32)]),
        seq_lens=torch.from_numpy(np.concatenate([computed + lengths, np.zeros(extra_requests)])).int(),
        seq_lens_cpu_upper_bound=torch.from_numpy(
            np.concatenate([computed + lengths, np.zeros(extra_requests)]).astype(np.int32)
        ),
        dcp_local_seq_lens=None,
        num_computed_tokens_np=computed,
        prefill_len_np=computed + 1,
        num_computed_prefill_tokens_np=computed,
        is_prefilling_np=lengths > 1,
        has_prefill=True,
        decode_graph_eligible=False,
        input_ids=torch.tensor([rng.randrange(500) for _ in range(tokens + extra_tokens)], dtype=torch.int32),
        positions=torch.from_numpy(np.concatenate([positions, np.zeros(extra_tokens)])).long(),
        is_padding=torch.zeros(tokens + extra_tokens, dtype=torch.bool),
        logits_indices=torch.from_numpy(logits_indices).long(),
        cu_num_logits=torch.from_numpy(logit_starts),
        cu_num_logits_np=logit_starts,
        has_structured_output_reqs=False,
        prompt_lens=None,
    )


def tables(batch: InputBatch) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    rows, tokens = batch.num_reqs_after_padding, batch.num_tokens_after_padding
    blocks = tuple(torch.arange(rows * BLOCKS).view(rows, BLOCKS).int() + 1000 * group for group in range(GROUPS))
    return blocks, torch.arange(GROUPS * tokens).view(GROUPS, tokens)


def by_request(batch: InputBatch, sub: SubBatch, used: np.ndarray) -> dict[str, list[Any]]:
    """What the sub-batch must hold, request by request."""
    blocks, mappings = tables(batch)
    wanted: dict[str, list[Any]] = {
        name: [] for name in ("ids", "positions", "lengths", "slots", "blocks", "mappings", "rows")
    }
    for i in np.flatnonzero(used):
        low, high = batch.query_start_loc_np[i : i + 2]
        wanted["ids"] += batch.input_ids[low:high].tolist()
        wanted["positions"] += batch.positions[low:high].tolist()
        wanted["lengths"].append(int(batch.seq_lens[i]))
        wanted["slots"].append(int(batch.idx_mapping_np[i]))
        wanted["blocks"].append([table[i].tolist() for table in blocks])
        wanted["mappings"] += mappings[:, low:high].T.tolist()
        wanted["rows"] += range(batch.cu_num_logits_np[i], batch.cu_num_logits_np[i + 1])
    return wanted


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("drafts", [False, True], ids=["", "drafts"])
@pytest.mark.parametrize("seed", range(25))
def test_it_is_the_batch_of_those_requests(seed: int, drafts: bool, padded: bool) -> None:
    rng = random.Random(seed)
    batch = draw_batch(rng, drafts, padded)
    used = np.array([rng.random() < 0.6 for _ in range(batch.num_reqs)])
    used[rng.randrange(batch.num_reqs)] = True
    if rng.random() < 0.2:
        used[:] = True
    blocks, mappings = tables(batch)
    sub = restrict(batch, blocks, mappings, used)
    own, wanted = sub.batch, by_request(batch, sub, used)

    assert own.num_reqs == own.num_reqs_after_padding == int(used.sum())
    assert own.num_tokens == own.num_tokens_after_padding == len(wanted["ids"])
    assert own.input_ids.tolist() == wanted["ids"]
    assert own.positions.tolist() == wanted["positions"]
    assert own.seq_lens.tolist() == own.seq_lens_cpu_upper_bound.tolist() == wanted["lengths"]
    assert own.idx_mapping_np.tolist() == wanted["slots"]
    assert own.query_start_loc.tolist() == own.query_start_loc_np.tolist()
    assert np.diff(own.query_start_loc_np).tolist() == batch.num_scheduled_tokens[used].tolist()
    assert own.num_scheduled_tokens.tolist() == batch.num_scheduled_tokens[used].tolist()
    assert own.is_prefilling_np.tolist() == batch.is_prefilling_np[used].tolist()
    assert [list(rows) for rows in zip(*(t.tolist() for t in sub.block_tables), strict=True)] == wanted["blocks"]
    assert sub.slot_mappings.T.tolist() == wanted["mappings"]
    # Each of its rows of logits is that row of the whole step: the same token at the same position.
    rows = list(range(len(batch.logits_indices))) if sub.logit_rows is None else sub.logit_rows.tolist()
    assert rows == wanted["rows"]
    tokens = range(own.num_tokens) if sub.logit_tokens is None else sub.logit_tokens.tolist()
    places = range(batch.num_tokens) if sub.tokens is None else sub.tokens.tolist()
    assert [places[token] for token in tokens] == batch.logits_indices[rows].tolist()


@pytest.mark.parametrize("seed", range(25))
def test_joined_sub_batches_hold_each_request_once_for_each(seed: int) -> None:
    """In vLLM's order, with its own blocks, and with a way back."""
    rng = random.Random(seed)
    batch = draw_batch(rng, drafts=False, padded=bool(seed % 2))
    blocks, mappings = tables(batch)
    subs = []
    for member in range(rng.randint(1, 4)):
        used = np.array([rng.random() < 0.6 for _ in range(batch.num_reqs)])
        used[rng.randrange(batch.num_reqs)] = True
        sub = restrict(batch, blocks, mappings, used)
        # Each member has blocks of its own.
        moved = tuple(table + 100 * member for table in sub.block_tables)
        subs.append(replace(sub, block_tables=moved, slot_mappings=sub.slot_mappings + 1000 * member))
    whole, order = joined(subs)
    own = whole.batch
    assert own.num_scheduled_tokens.tolist() == sorted(own.num_scheduled_tokens.tolist())
    assert np.diff(own.query_start_loc_np).tolist() == own.num_scheduled_tokens.tolist()
    assert own.query_start_loc.tolist() == own.query_start_loc_np.tolist()
    assert own.num_reqs == len(order.requests) == sum(sub.batch.num_reqs for sub in subs)
    apart = [(number, request) for number, sub in enumerate(subs) for request in range(sub.batch.num_reqs)]
    for place, (number, request) in enumerate(apart[which] for which in order.requests):
        sub = subs[number]
        (low, high), (first, last) = (b.query_start_loc_np[i : i + 2] for b, i in ((own, place), (sub.batch, request)))
        assert own.input_ids[low:high].tolist() == sub.batch.input_ids[first:last].tolist()
        assert own.positions[low:high].tolist() == sub.batch.positions[first:last].tolist()
        assert whole.slot_mappings[:, low:high].tolist() == sub.slot_mappings[:, first:last].tolist()
        assert [t[place].tolist() for t in whole.block_tables] == [t[request].tolist() for t in sub.block_tables]
        for name in ("seq_lens", "seq_lens_cpu_upper_bound", "idx_mapping_np", "is_prefilling_np"):
            assert getattr(own, name)[place] == getattr(sub.batch, name)[request]
    back = order.back(own.positions[:, None].float())[:, 0].tolist()
    assert back == [float(position) for sub in subs for position in sub.batch.positions[: sub.batch.num_tokens]]
