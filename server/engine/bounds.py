"""How much of a request vLLM's sampler has room for.

Model Runner V2 writes what a request bans, allows and biases into rows of a fixed width, in the worker, where one entry
too many is an exception that ends the engine for everybody (vLLM 0.32, `vllm.v1.worker.gpu.sample`).
"""

from __future__ import annotations

from collections.abc import Collection

from vllm import SamplingParams, envs
from vllm.exceptions import VLLMValidationError
from vllm.tokenizers import TokenizerLike
from vllm.v1.worker.gpu.sample.logit_bias import (
    MAX_NUM_ALLOWED_TOKEN_IDS,
    MAX_NUM_LOGIT_BIAS_TOKENS,
    MAX_NUM_STOP_TOKEN_IDS,
)


def check_bounds(
    params: SamplingParams, stops: Collection[int], tokenizer: TokenizerLike, *, speculates: bool = False
) -> None:
    """Refuse a request that asks for more than its rows hold; the models' own `stops` count where they are masked.

    One that speculates has its ends looked for among the tokens of each step (`server.engine.speculation.ends`).

    Raises:
        VLLMValidationError: it does; the field is named.
    """
    _check("allowed_token_ids", len(params.allowed_token_ids or ()), MAX_NUM_ALLOWED_TOKEN_IDS, "entries")
    _check("logit_bias", len(params.logit_bias or ()), MAX_NUM_LOGIT_BIAS_TOKENS, "entries")
    if (params.min_tokens or speculates) and params.stop_token_ids:
        own = set(params.stop_token_ids).difference(stops)
        _check(
            "stop_token_ids", len(own), MAX_NUM_STOP_TOKEN_IDS - len(stops), "tokens beside min_tokens or speculation"
        )
    if params.bad_words:
        words = SamplingParams(bad_words=params.bad_words)
        words.update_from_tokenizer(tokenizer)
        tokens = sum(map(len, words.bad_words_token_ids or ()))
        _check("bad_words", tokens, envs.VLLM_MAX_BAD_WORDS_TOTAL_TOKENS, "tokens in all")


def _check(field: str, size: int, room: int, what: str) -> None:
    if size > room:
        raise VLLMValidationError(f"at most {room:,} {what} are allowed, not {size:,}", parameter=field)
