"""Logit bias, allowed tokens, no end before a least length, and bad words."""

# mypy: disable-error-code="untyped-decorator"
from typing import Any

import numpy as np

from server.engine.cpu_runner.arrays import compiled, line


@compiled(
    "void(float32[:,:], int64[:], int32[:], int32[:,:], int32[:], int32[:,:], float32[:,:], int64[:], int32[:],"
    " int32[:], int32[:], int32[:,:], boolean)"
)
def bias(
    logits: Any, expanded_idx_mapping: Any, num_allowed_token_ids: Any, allowed_token_ids: Any, num_logit_bias: Any,
    bias_token_ids: Any, bias: Any, pos: Any, min_lens: Any, num_stop_token_ids: Any, restore_when_all_masked: Any,
    stop_token_ids: Any, check_all_masked_rows: bool,
) -> None:  # fmt: skip
    """sample.logit_bias._bias_kernel: keep the allowed tokens, add the bias, forbid stop tokens before a least length.

    Args:
        logits: [rows, V] float32, changed in place.
        expanded_idx_mapping: [rows] int64, slots.
        num_allowed_token_ids, allowed_token_ids: [slots], [slots, most] int32; none allowed: all are.
        num_logit_bias, bias_token_ids, bias: [slots], [slots, most] int32, [slots, most] float32.
        pos: [rows] int64.
        min_lens: [slots] int32, prompt and least output.
        num_stop_token_ids, stop_token_ids: [slots], [slots, most] int32.
        restore_when_all_masked: [slots] int32, give stop tokens back where nothing else is left.
        check_all_masked_rows: whether any slot asks for that.
    """
    for row in range(logits.shape[0]):
        slot = expanded_idx_mapping[row]
        entries = line(logits, row)
        allowed = line(allowed_token_ids, slot)[: num_allowed_token_ids[slot]]
        if allowed.size:
            kept = entries[allowed]
            entries[:] = -np.inf
            for j in range(allowed.size):
                entries[allowed[j]] = kept[j]
        for j in range(num_logit_bias[slot]):
            entries[bias_token_ids[slot, j]] += bias[slot, j]
        ends = line(stop_token_ids, slot)[: num_stop_token_ids[slot]]
        if ends.size == 0 or pos[row] + 1 >= min_lens[slot]:
            continue
        kept = entries[ends]
        for j in range(ends.size):
            entries[ends[j]] = -np.inf
        if check_all_masked_rows and restore_when_all_masked[slot] != 0 and not (entries > -np.inf).any():
            for j in range(ends.size):
                if -np.inf < kept[j] < np.inf:
                    entries[ends[j]] = kept[j]


@compiled(
    "void(float32[:,:], int64[:], int32[:,:], int32[:,:], int32[:], int32[:,:], int32[:], int32[:], int32[:], int32[:])"
)
def bad_words(
    logits: Any, expanded_idx_mapping: Any, bad_word_token_ids: Any, bad_word_offsets: Any, num_bad_words: Any,
    all_token_ids: Any, prompt_len: Any, total_len: Any, input_ids: Any, expanded_local_pos: Any,
) -> None:  # fmt: skip
    """sample.bad_words._bad_words_kernel: -inf for a token that would complete a bad word.

    Args:
        logits: [rows, V] float32, changed in place.
        expanded_idx_mapping: [rows] int64, slots.
        bad_word_token_ids: [slots, most] int32, the words' tokens one after the other.
        bad_word_offsets: [slots, words + 1] int32, where each word begins.
        num_bad_words: [slots] int32.
        all_token_ids: [slots, max_model_len] int32.
        prompt_len, total_len: [slots] int32.
        input_ids: [rows] int32, the input token of each row: after a request's first, drafts.
        expanded_local_pos: [rows] int32, the row's index in its request.
    """
    for row in range(logits.shape[0]):
        slot = expanded_idx_mapping[row]
        written = total_len[slot] - prompt_len[slot]
        length = written + expanded_local_pos[row]
        for word in range(num_bad_words[slot]):
            first, stop = bad_word_offsets[slot, word], bad_word_offsets[slot, word + 1]
            before = stop - first - 1
            if before > length:
                continue
            same = True
            for j in range(before):
                index = length - before + j
                if index < written:
                    token = all_token_ids[slot, prompt_len[slot] + index]
                else:
                    token = input_ids[row - expanded_local_pos[row] + index - written + 1]
                same = same and token == bad_word_token_ids[slot, first + j]
            if same:
                logits[row, bad_word_token_ids[slot, stop - 1]] = -np.inf
