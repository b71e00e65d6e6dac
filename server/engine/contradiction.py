"""Fields that rule out every token only after some have been generated: the answer ends there, with an error.

With nothing left vLLM's sampler takes any token at all, and a grammar that meets it fails as if the engine had.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing

from vllm import RequestOutput, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.tokenizers import TokenizerLike


def masking_fields(params: SamplingParams) -> list[str]:
    """The fields of a request that rule tokens out."""
    found = {
        "allowed_token_ids": params.allowed_token_ids,
        "bad_words": params.bad_words,
        "min_tokens": params.min_tokens,
        "structured_outputs": params.structured_outputs,
    }
    return [name for name, value in found.items() if value]


async def obeying(
    outputs: AsyncGenerator[RequestOutput, None], params: SamplingParams, tokenizer: TokenizerLike
) -> AsyncGenerator[RequestOutput, None]:
    """Pass on the outputs of a request with several masks, until one of them is not obeyed.

    Raises:
        VLLMValidationError: no token was left.
    """
    fields = masking_fields(params)
    allowed = frozenset(params.allowed_token_ids or ())
    words = SamplingParams(bad_words=params.bad_words)
    words.update_from_tokenizer(tokenizer)
    banned = [tuple(ids) for ids in words.bad_words_token_ids or ()]
    texts: dict[int, list[int]] = defaultdict(list)
    async with aclosing(outputs):
        async for output in outputs:
            for choice in output.outputs:
                text = texts[choice.index]
                for token in choice.token_ids:
                    text.append(token)
                    outside = bool(allowed) and token not in allowed
                    if outside or any(tuple(text[-len(ids) :]) == ids for ids in banned):
                        raise _nothing_left(fields, choice.index, len(text) - 1)
                too_early = choice.finish_reason == "stop" and len(text) < params.min_tokens
                if choice.finish_reason == "error" or too_early:
                    raise _nothing_left(fields, choice.index, max(0, len(text) - 1))
            yield output


def _nothing_left(fields: list[str], choice: int, tokens: int) -> VLLMValidationError:
    return VLLMValidationError(
        f"{' and '.join(fields)} contradict each other: after {tokens} tokens of choice {choice} none is left that all "
        "of them allow",
        parameter=fields[0],
    )
