"""Launches of the kernels between logits and tokens."""

from typing import Any

import torch

from tests.engine.cpu_runner.draw import MAX_MODEL_LEN, SLOTS, Draw, Launch, blocks, launches


@launches("gpu.sample.gumbel._gumbel_sample_kernel")
def gumbel_sample(draw: Draw) -> Launch:
    logits = draw.logits()
    number, doubled = blocks(draw.vocabulary, 1024), draw.seed % 7 == 3
    winners = torch.zeros(draw.rows, number, dtype=torch.int64)
    tops = torch.zeros(draw.rows, number, dtype=torch.float64 if doubled else torch.float32)
    cached: list[Any] = [None, 0, 0, None, None, 0]
    cache, column = torch.zeros(SLOTS, 4, draw.vocabulary + 3, dtype=draw.dtype), None
    if draw.seed % 2:
        source = draw.logits()
        # One row a slot: two that write one place would race.
        draw.row_slots = torch.randperm(max(SLOTS, draw.rows), generator=draw.generator)[: draw.rows]
        cache = torch.zeros(max(SLOTS, draw.rows), 4, draw.vocabulary + 3, dtype=draw.dtype)
        column = draw.longs(0, 4, draw.rows) if draw.seed % 3 else torch.tensor(2)
        cached = [cache, cache.stride(0), cache.stride(1), column, source, source.stride(0)]
    args: list[Any] = [winners, number, tops, number, *cached, logits, logits.stride(0), draw.with_gap_rows()]
    slots = cache.shape[0]
    args += [draw.longs(-(2**62), 2**62, slots), draw.longs(0, 4000, draw.rows), draw.temperatures(slots)]
    args += [draw.vocabulary]
    constants = {
        "BLOCK_SIZE": 1024,
        "IS_DRAFTING": bool(draw.seed % 2),
        "APPLY_TEMPERATURE": bool(draw.seed % 3),
        "USE_FP64": doubled,
        "PER_TOKEN_COL": column is not None and column.dim() > 0,
    }
    return Launch((draw.rows, number), args, [winners, tops, cache], constants, tolerance=1e-5)


@launches("gpu.sample.gumbel._temperature_kernel")
def temperature(draw: Draw) -> Launch:
    logits = draw.logits(dtype=torch.float32)
    args: list[Any] = [logits, logits.stride(0), draw.row_slots, draw.temperatures(), draw.vocabulary]
    return Launch((draw.rows, blocks(draw.vocabulary, 8192)), args, [logits], {"BLOCK_SIZE": 8192}, tolerance=1e-6)


@launches("gpu.sample.min_p._min_p_kernel")
def min_p(draw: Draw) -> Launch:
    logits = draw.logits(dtype=torch.float32)
    least = draw.sometimes(0.0, draw.reals(SLOTS) / 2)
    args: list[Any] = [logits, logits.stride(0), draw.row_slots, least, draw.vocabulary]
    return Launch((draw.rows,), args, [logits], {"BLOCK_SIZE": 1024})


@launches("gpu.sample.penalties._penalties_kernel")
def penalties(draw: Draw) -> Launch:
    logits = draw.logits(dtype=torch.float32)
    prompt = draw.ints(-(2**31), 2**31 - 1, SLOTS, blocks(draw.vocabulary, 32))
    counts = (draw.ints(0, 20, SLOTS, draw.vocabulary) == 0).int() * 2
    settings = [draw.sometimes(1.0, 0.5 + draw.reals(SLOTS)), draw.sometimes(0.0, draw.reals(SLOTS) - 0.5)]
    settings += [draw.sometimes(0.0, draw.reals(SLOTS) - 0.5)]
    args: list[Any] = [logits, logits.stride(0), draw.row_slots, draw.ints(0, draw.vocabulary, draw.rows), draw.places]
    args += [*settings, prompt, prompt.stride(0), counts, counts.stride(0), draw.vocabulary]
    grid = (draw.rows, blocks(draw.vocabulary, 8192))
    return Launch(grid, args, [logits, counts], {"BLOCK_SIZE": 8192}, tolerance=1e-5)


@launches("gpu.sample.penalties._bincount_kernel")
def bincount(draw: Draw) -> Launch:
    prompt = torch.zeros(SLOTS, blocks(draw.vocabulary, 32), dtype=torch.int32)
    counts = torch.zeros(SLOTS, draw.vocabulary, dtype=torch.int32)
    args: list[Any] = [
        draw.slots,
        draw.all_token_ids,
        MAX_MODEL_LEN,
        draw.prompt,
        draw.prefill,
        prompt,
        prompt.stride(0),
    ]
    return Launch((draw.requests, 1), [*args, counts, counts.stride(0)], [prompt, counts], {"BLOCK_SIZE": 1024})


@launches("gpu.sample.logit_bias._bias_kernel")
def bias(draw: Draw) -> Launch:
    logits = draw.logits(dtype=torch.float32)
    allowed, biased, ends = draw.distinct(64), draw.distinct(64), draw.distinct(16)
    if draw.seed % 3 == 0:  # nothing but stop tokens may be left
        allowed = ends
    number = draw.sometimes(0, draw.ints(1, allowed.shape[1] + 1, SLOTS)).int()
    args: list[Any] = [logits, logits.stride(0), draw.vocabulary, draw.row_slots, number, allowed, allowed.shape[1]]
    args += [draw.ints(0, biased.shape[1] + 1, SLOTS), biased, biased.shape[1]]
    args += [torch.randn(SLOTS, biased.shape[1], generator=draw.generator), biased.shape[1]]
    args += [draw.longs(0, 4000, draw.rows), draw.ints(0, 8000, SLOTS), draw.ints(0, ends.shape[1] + 1, SLOTS)]
    args += [draw.ints(0, 2, SLOTS), ends, ends.shape[1]]
    constants = {"BLOCK_SIZE": 64, "LOGITS_BLOCK_SIZE": 8192, "CHECK_ALL_MASKED_ROWS": bool(draw.seed % 2)}
    return Launch((draw.rows,), args, [logits], constants)


@launches("gpu.sample.bad_words._bad_words_kernel")
def bad_words(draw: Draw) -> Launch:
    logits = draw.logits(dtype=torch.float32)
    # Words over three tokens, so that many of them are about to be completed.
    words, offsets = draw.ints(0, 3, SLOTS, 8), torch.tensor([[0, 1, 3, 6, 8]] * SLOTS, dtype=torch.int32)
    written, ids = draw.ints(0, 3, SLOTS, MAX_MODEL_LEN), draw.ints(0, 3, draw.rows)
    args: list[Any] = [logits, logits.stride(0), draw.row_slots, words, 8, offsets, 5, draw.ints(0, 5, SLOTS), written]
    args += [MAX_MODEL_LEN, draw.prompt, draw.total, ids, draw.places]
    return Launch((draw.rows, 4), args, [logits])


@launches("gpu.sample.thinking_budget._thinking_budget_kernel")
def thinking_budget(draw: Draw) -> Launch:
    logits = draw.logits(dtype=torch.float32)
    written = draw.ints(0, 3, SLOTS, MAX_MODEL_LEN)
    markers = [draw.ints(0, 3, 2), draw.ints(0, 3, 1 + draw.seed % 2), draw.ints(0, 3, 3)]
    last = [draw.ints(-1, 20, SLOTS), draw.ints(-1, 20, SLOTS)]
    args: list[Any] = [
        logits,
        logits.stride(0),
        draw.row_slots,
        draw.ints(-1, 9, SLOTS),
        written,
        MAX_MODEL_LEN,
        draw.total,
    ]
    args += [draw.ints(0, 3, draw.rows), draw.places, *last, *markers]
    constants = {"START_LEN": 2, "NATURAL_END_LEN": markers[1].numel(), "END_LEN": 3}
    return Launch((draw.rows,), args, [logits], constants)


@launches("gpu.sample.thinking_budget._update_committed_marker_cache_kernel")
def update_committed_marker_cache(draw: Draw) -> Launch:
    written = draw.ints(0, 3, SLOTS, MAX_MODEL_LEN)
    markers = [draw.ints(0, 3, 2), draw.ints(0, 3, 1)]
    # Never at 0, where the kernel looks from the end and the function from the beginning.
    last = [draw.ints(-1, 20, SLOTS), draw.ints(-1, 20, SLOTS), draw.ints(1, 60, SLOTS)]
    args: list[Any] = [draw.slots, draw.ints(-1, 9, SLOTS), written, MAX_MODEL_LEN, draw.total, *last, *markers]
    constants = {"START_LEN": 2, "NATURAL_END_LEN": 1, "MAX_LEN": 2, "BLOCK": 1024}
    return Launch((draw.requests,), args, last, constants)


@launches("gpu.structured_outputs._apply_grammar_bitmask_kernel")
def apply_grammar_bitmask(draw: Draw) -> Launch:
    logits, stride = draw.logits(), 5
    masks = draw.ints(-(2**31), 2**31 - 1, draw.rows, blocks(draw.vocabulary, 32))
    rows = [i * stride + torch.arange(int(number)) for i, number in enumerate(draw.rows_each)]
    places = torch.cat([torch.zeros(0, dtype=torch.int64), *rows]).int()
    if draw.rows and draw.seed % 2:  # a mask for a draft that was trimmed
        places[-1] = (draw.requests - 1) * stride + 4
    args: list[Any] = [logits, logits.stride(0), places, draw.cu_num_logits, masks, masks.stride(0), draw.vocabulary]
    grid = (draw.rows, blocks(draw.vocabulary, 8192))
    return Launch(grid, args, [logits], {"MASK_STRIDE": stride, "BLOCK_SIZE": 8192})


@launches("gpu.sample.logprob._topk_log_softmax_kernel")
def topk_log_softmax(draw: Draw) -> Launch:
    logits, number = draw.logits(), 4
    out, ids = torch.zeros(draw.rows, number), draw.longs(0, draw.vocabulary, draw.rows, number)
    args: list[Any] = [out, logits, logits.stride(0), ids, number, number, draw.vocabulary]
    return Launch((draw.rows,), args, [out], {"BLOCK_SIZE": 1024, "TOPK_BLOCK_SIZE": 4}, tolerance=1e-5)


@launches("gpu.sample.logprob._ranks_kernel")
def ranks(draw: Draw) -> Launch:
    # In bfloat16 Triton's interpreter compares the bits, as unsigned numbers; and for a token of -inf the kernel counts
    # what pads its last block as well.
    logits = draw.logits(dtype=torch.float32).nan_to_num(neginf=-99.0)
    out = torch.zeros(draw.rows, dtype=torch.int64)
    args: list[Any] = [out, logits, logits.stride(0), draw.longs(0, draw.vocabulary, draw.rows), draw.vocabulary]
    return Launch((draw.rows,), args, [out], {"BLOCK_SIZE": 8192})


@launches("gpu.sample.logprob._fill_logprob_token_ids_kernel")
def fill_logprob_token_ids(draw: Draw) -> Launch:
    out, valid = torch.zeros(draw.rows, 6, dtype=torch.int64), torch.zeros(draw.rows, 6, dtype=torch.bool)
    likeliest = 3 if draw.seed % 2 else 0
    args: list[Any] = [
        out,
        6,
        valid,
        6,
        draw.longs(0, draw.vocabulary, draw.rows),
        draw.ints(0, draw.vocabulary, draw.rows, 3),
        3,
    ]
    args += [draw.row_slots, draw.ints(0, 6, SLOTS), draw.ints(0, draw.vocabulary, SLOTS, 128), 128]
    return Launch((draw.rows,), args, [out, valid], {"NUM_TOPK": likeliest, "PADDED_COLS": 8})


@launches("gpu.sample.prompt_logprob._prompt_logprobs_token_ids_kernel")
def prompt_logprobs_token_ids(draw: Draw) -> Launch:
    out = torch.zeros(draw.tokens, dtype=torch.int64)
    args: list[Any] = [out, draw.query_start_loc, draw.slots, draw.computed, draw.all_token_ids, MAX_MODEL_LEN]
    return Launch((draw.requests,), args, [out], {"BLOCK_SIZE": 1024})


@launches("gpu.spec_decode.rejection_sampler._gather_draft_sampled_kernel")
def gather_draft_sampled(draw: Draw) -> Launch:
    drafts, positions = torch.zeros(draw.rows, dtype=torch.int32), torch.zeros(draw.rows, dtype=torch.int64)
    tokens = max(draw.tokens, 1)
    args: list[Any] = [drafts, positions, draw.ints(0, 99, tokens), draw.longs(0, 120, tokens)]
    args += [draw.longs(0, tokens, draw.rows), draw.row_slots, draw.places, draw.prefill, draw.rows]
    return Launch((blocks(draw.rows, 1024),), args, [drafts, positions], {"BLOCK_SIZE": 1024})


@launches("gpu.spec_decode.rejection_sampler._flatten_sampled_kernel")
def flatten_sampled(draw: Draw) -> Launch:
    out = torch.zeros(draw.rows, dtype=torch.int64)
    number = torch.minimum(draw.rows_each, draw.ints(1, 5, draw.requests))
    args: list[Any] = [out, draw.longs(0, 99, draw.requests, 5), 5, number, draw.cu_num_logits]
    return Launch((draw.requests,), args, [out], {"num_warps": 1})


@launches("gpu.spec_decode.standalone_ar.speculator._prepare_prefill_inputs_kernel")
def prepare_prefill_inputs(draw: Draw) -> Launch:
    results = [torch.zeros(120, dtype=torch.int32), torch.zeros(120, dtype=torch.int64)]
    results += [torch.zeros(SLOTS, dtype=torch.int64), torch.zeros(SLOTS + 1, dtype=torch.int32)]
    results += [torch.zeros(SLOTS, dtype=torch.int32)]
    tokens = max(draw.tokens, 1)
    args: list[Any] = [
        draw.ints(0, 99, tokens),
        draw.longs(0, 120, tokens),
        draw.ints(0, 99, SLOTS, 1),
        draw.slots,
        *results,
    ]
    rejected = torch.minimum(draw.lengths - 1, draw.ints(0, 3, draw.requests))
    args += [draw.query_start_loc, draw.seq_lens, rejected, SLOTS, 60]
    # vLLM launches it with a batch only, and without one the kernel writes nothing, not even the padding.
    return Launch((draw.requests,), args, results if draw.requests else [], {"BLOCK_SIZE": 16})
