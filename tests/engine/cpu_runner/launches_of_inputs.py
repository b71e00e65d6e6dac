"""Launches of the kernels that prepare a step and keep its books."""

from typing import Any

import torch

from tests.engine.cpu_runner.draw import MAX_MODEL_LEN, MAX_TOKENS, SLOTS, Draw, Launch, blocks, launches


@launches("gpu.buffer_utils._apply_write_kernel")
def apply_write(draw: Draw) -> Launch:
    writes = draw.whole(0, 5)
    lengths = draw.ints(1, 12, writes)
    ends = lengths.cumsum(0).int()
    contents = draw.ints(0, 99, int(lengths.sum()))
    rows = torch.randperm(SLOTS, generator=draw.generator)[:writes].int()
    where: list[Any] = [rows, draw.ints(0, 20, writes), contents, ends]
    if draw.seed % 2:
        outputs = [draw.ints(0, 9, SLOTS, 32 + 8 * i) for i in range(3)]
        strides = torch.tensor([output.stride(0) for output in outputs])
        args: list[Any] = [draw.addresses(outputs), strides, *where, draw.ints(0, 3, writes)]
        return Launch((writes,), args, outputs, {"BLOCK_SIZE": 1024, "MULTI_GROUP": True})
    output = draw.ints(0, 9, SLOTS, MAX_MODEL_LEN)
    if draw.seed % 4 == 0:
        output, where[2] = output.float(), draw.reals(contents.numel())
    args = [output, MAX_MODEL_LEN, *where, None]
    return Launch((writes,), args, [output], {"BLOCK_SIZE": 1024, "MULTI_GROUP": False})


@launches("gpu.block_table._gather_block_tables_kernel")
def gather_block_tables(draw: Draw) -> Launch:
    tables = [draw.ints(0, 500, SLOTS, width) for width in (20, 32)]
    outputs = [torch.zeros_like(table) for table in tables]
    number = draw.ints(0, 20, 2, SLOTS)
    strides = torch.tensor([20, 32])
    # The product runs no graphs on CPUs, and so without rows that pad the batch.
    args: list[Any] = [draw.slots, draw.addresses(tables), draw.addresses(outputs), strides, number, number.stride(0)]
    draw.kept = tables
    return Launch((2, draw.requests), [*args, draw.requests], outputs, {"BLOCK_SIZE": 1024})


@launches("gpu.block_table._compute_slot_mappings_kernel")
def compute_slot_mappings(draw: Draw) -> Launch:
    draw.kept = tables = [draw.ints(0, 500, SLOTS, 20) for _ in range(2)]
    slots = torch.full((2, MAX_TOKENS), 7)
    enabled, sharded = torch.tensor([True, bool(draw.seed % 3)]), torch.tensor([True, True])
    sizes, strides = torch.tensor([8, 16], dtype=torch.int32), torch.tensor([20, 20])
    batch = [MAX_TOKENS, draw.with_gaps(), draw.query_start_loc, draw.longs(0, 120, max(draw.tokens, 1))]
    args: list[Any] = [*batch, draw.addresses(tables), strides, sizes, enabled, sharded, slots, slots.stride(0), 0]
    constants = {"CP_SIZE": 1, "CP_INTERLEAVE": 1, "PAD_ID": -1, "TRITON_BLOCK_SIZE": 1024}
    return Launch((2, draw.requests + 1), args, [slots], constants)


@launches("gpu.input_batch._prepare_prefill_inputs_kernel")
def prepare_prefill_inputs(draw: Draw) -> Launch:
    ids, following = draw.ints(0, 99, MAX_TOKENS), draw.ints(0, 99, 2, SLOTS)
    args: list[Any] = [ids, following, following.stride(0), 2, draw.slots, draw.query_start_loc, draw.all_token_ids]
    args += [MAX_MODEL_LEN, draw.prefill, draw.computed]
    return Launch((draw.requests,), args, [ids, following], {"BLOCK_SIZE": 1024, "LOOKAHEAD_BLOCK": 2})


@launches("gpu.input_batch._prepare_pos_seq_lens_kernel")
def prepare_pos_seq_lens(draw: Draw) -> Launch:
    positions, lengths = draw.longs(0, 9, MAX_TOKENS), draw.ints(0, 9, SLOTS)
    args: list[Any] = [positions, lengths, draw.slots, draw.query_start_loc, draw.computed, SLOTS]
    return Launch((draw.requests + 1,), args, [positions, lengths], {"BLOCK_SIZE": 1024})


@launches("gpu.input_batch._combine_sampled_and_draft_tokens_kernel")
def combine_sampled_and_draft_tokens(draw: Draw) -> Launch:
    ids, indices = draw.ints(0, 99, MAX_TOKENS), torch.zeros(draw.rows, dtype=torch.int64)
    last, drafts = draw.longs(0, 99, SLOTS, 1), draw.longs(0, 99, SLOTS, 4)
    args: list[Any] = [
        ids,
        draw.slots,
        last,
        draw.query_start_loc,
        draw.seq_lens,
        draw.prefill,
        drafts,
        4,
        draw.cu_num_logits,
    ]
    constants = {"NUM_NEW_SAMPLED_TOKENS": 1, "BLOCK_SIZE": 8}
    return Launch((draw.requests,), [*args, indices], [ids, indices], constants)


@launches("gpu.input_batch._expand_idx_mapping_kernel")
def expand_idx_mapping(draw: Draw) -> Launch:
    rows, places = torch.zeros(draw.rows, dtype=torch.int64), torch.zeros(draw.rows, dtype=torch.int32)
    args: list[Any] = [draw.slots, rows, places, draw.cu_num_logits]
    return Launch((draw.requests,), args, [rows, places], {"BLOCK_SIZE": 8})


@launches("gpu.mm.rope._prepare_rope_positions_kernel")
def prepare_rope_positions(draw: Draw) -> Launch:
    positions = torch.zeros(3, MAX_TOKENS + 1, dtype=torch.int64)
    prompt = draw.ints(0, 99, SLOTS * 3, MAX_MODEL_LEN)
    args: list[Any] = [
        positions,
        positions.stride(0),
        prompt,
        3 * MAX_MODEL_LEN,
        MAX_MODEL_LEN,
        draw.ints(-9, 9, SLOTS),
    ]
    args += [draw.slots, draw.query_start_loc, draw.prefill, draw.computed]
    return Launch((draw.requests,), args, [positions], {"BLOCK_SIZE": 1024, "NUM_DIMS": 3})


@launches("gpu.model_states.prompt_embeds._apply_prompt_embeds_kernel")
def apply_prompt_embeds(draw: Draw) -> Launch:
    hidden = 48
    target = torch.zeros(MAX_TOKENS, hidden, dtype=draw.dtype)
    embeds = [torch.rand(40, hidden, generator=draw.generator).to(draw.dtype) for _ in range(SLOTS)]
    masks = [draw.ints(0, 2, 40, dtype=torch.uint8) for _ in range(SLOTS)]
    draw.kept = embeds + masks
    mask_addresses = torch.where(torch.arange(SLOTS) % 2 == 0, draw.addresses(masks).long(), 0).to(torch.uint64)
    lengths = draw.sometimes(0, draw.ints(1, 41, SLOTS)).int()
    args: list[Any] = [
        target,
        hidden,
        draw.addresses(embeds),
        mask_addresses,
        lengths,
        draw.slots,
        draw.query_start_loc,
    ]
    constants = {"TOKEN_BLOCK": 16, "BLOCK_SIZE": 1024}
    return Launch((draw.requests, 1), [*args, draw.computed, hidden], [target], constants)


@launches("gpu.input_batch._get_num_sampled_and_rejected_kernel")
def get_num_sampled_and_rejected(draw: Draw) -> Launch:
    sampled, rejected = torch.minimum(draw.ints(0, 5, draw.requests), draw.rows_each), draw.ints(0, 9, draw.requests)
    args: list[Any] = [sampled, rejected, draw.seq_lens, draw.cu_num_logits, draw.slots, draw.prefill]
    return Launch((draw.requests,), args, [sampled, rejected])


@launches("gpu.input_batch._post_update_kernel")
def post_update(draw: Draw) -> Launch:
    last = draw.longs(0, 99, SLOTS, 1)
    counts = None if draw.seed % 2 else torch.zeros(SLOTS, draw.vocabulary, dtype=torch.int32)
    starts = None if draw.seed % 3 else draw.query_start_loc
    sampled = torch.minimum(draw.ints(0, 5, draw.requests), draw.rows_each)
    tokens = draw.longs(0, draw.vocabulary, draw.requests, 5)
    args: list[Any] = [draw.with_gaps(), draw.computed, last, counts, draw.vocabulary, tokens, 5, sampled]
    args += [draw.ints(0, 3, draw.requests), starts, draw.all_token_ids, MAX_MODEL_LEN, draw.total]
    results = [draw.computed, last, draw.all_token_ids, draw.total] + ([] if counts is None else [counts])
    return Launch((draw.requests,), args, results, {"num_warps": 1})


@launches("gpu.input_batch._post_update_num_computed_tokens_kernel")
def post_update_num_computed_tokens(draw: Draw) -> Launch:
    return Launch((draw.requests,), [draw.slots, draw.computed, draw.query_start_loc], [draw.computed])


@launches("gpu.sample.trace_replay._trace_replay_kernel")
def trace_replay(draw: Draw) -> Launch:
    sampled, trace = draw.longs(0, 99, draw.requests), draw.ints(100, 200, SLOTS, MAX_MODEL_LEN)
    args: list[Any] = [
        sampled,
        draw.with_gaps(),
        trace,
        MAX_MODEL_LEN,
        draw.ints(0, 20, SLOTS),
        draw.total,
        draw.prompt,
    ]
    return Launch((draw.requests,), args, [sampled])


@launches("gpu.sample.output._compact_sampling_mask_kernel")
def compact_sampling_mask(draw: Draw) -> Launch:
    logits = draw.logits(dtype=torch.float32)
    logits[draw.reals(*logits.shape) < 0.9] = -torch.inf
    stride, most, number = 4, draw.vocabulary // 3, draw.requests * 4
    tokens, counts = torch.zeros(number, most, dtype=torch.int32), draw.ints(1, 9, number)
    packed = torch.zeros(number, blocks(draw.vocabulary, 8), dtype=torch.uint8)
    args: list[Any] = [
        logits,
        logits.stride(0),
        1,
        draw.cu_num_logits,
        draw.rows_each,
        tokens,
        most,
        packed,
        packed.stride(0),
    ]
    constants = {"ROWS_PER_REQUEST": stride, "BLOCK_SIZE": 8192}
    return Launch((number,), [*args, counts, draw.vocabulary, most], [tokens, packed, counts], constants)


@launches("gpu.model_states.mamba_hybrid._scatter_num_accepted_kernel")
def scatter_num_accepted(draw: Draw) -> Launch:
    accepted = draw.ints(1, 5, SLOTS)
    return Launch((draw.requests,), [draw.with_gaps(), draw.ints(0, 5, draw.requests), accepted], [accepted])


@launches("gpu.model_states.mamba_hybrid._fill_num_accepted_kernel")
def fill_num_accepted(draw: Draw) -> Launch:
    accepted = draw.ints(1, 5, SLOTS)
    return Launch((draw.requests,), [draw.with_gaps(), accepted, 1], [accepted])
