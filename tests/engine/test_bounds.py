"""What vLLM's sampler has no room for is refused before a worker sees it."""

from __future__ import annotations

from typing import Any

import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from server.engine.bounds import check_bounds


def test_logit_bias_at_the_bound_and_one_more() -> None:
    tokenizer: Any = None  # is asked for the tokens of bad words alone
    check_bounds(SamplingParams(logit_bias=dict.fromkeys(range(1024), 1.0)), (), tokenizer)
    with pytest.raises(VLLMValidationError, match="at most 1,024 entries are allowed, not 1,025") as raised:
        check_bounds(SamplingParams(logit_bias=dict.fromkeys(range(1025), 1.0)), (), tokenizer)
    assert raised.value.parameter == "logit_bias"


def test_ends_that_drafts_are_compared_with() -> None:
    tokenizer: Any = None
    check_bounds(SamplingParams(stop_token_ids=list(range(129))), (), tokenizer)
    check_bounds(SamplingParams(stop_token_ids=list(range(128))), (), tokenizer, speculates=True)
    with pytest.raises(VLLMValidationError, match="at most 128 tokens beside min_tokens or speculation"):
        check_bounds(SamplingParams(stop_token_ids=list(range(129))), (), tokenizer, speculates=True)
