"""vLLM's complaints about a request in the client's words: the field to blame, and no names of its code."""

from __future__ import annotations

import re
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError, VLLMValidationError

from server.api.errors import RequestError

PROMPT = "PROMPT"
"""Stands for the field of a request that holds its prompt."""

# What vLLM 0.32 says, the field to blame, and what a client can make use of; None keeps vLLM's words.
_SENTENCES: tuple[tuple[str, str, str | None], ...] = (
    (r"must use one kind of structured outputs", "structured_outputs",
     "one of json, json_object, regex, choice, grammar and structural_tag is needed"),
    (r"can only use one kind", "structured_outputs",
     "only one of json, json_object, regex, choice, grammar and structural_tag can be followed"),
    (r"render\(\) got multiple values|apply_chat_template\(\) got", "chat_template_kwargs",
     "it holds an argument that the server sets itself, such as 'messages' or 'tools'"),
    (r"--trust-request-chat-template", "chat_template", "a template of the request's own is not accepted here"),
    (r"empty conversation", PROMPT, "at least one message is needed"),
    (r"is not a multimodal model", PROMPT, "only text can be read here"),
    (r"reasoning_config|reasoning-parser", "thinking_token_budget", "this server's models do not reason apart"),
    (r"enable-prompt-embeds", "prompt_embeds", "embeddings cannot be read here; send text or token ids"),
    (r"decoder prompt cannot be empty|at least one prompt", PROMPT, "at least one token is needed"),
    (r"Token id \d+ is out of vocabulary", PROMPT, None),
    (r"max_pattern_size", "repetition_detection", None),
    (r"supported with beam search|beam search is not", "use_beam_search", None),
    (r"TextEncodeInput", PROMPT, "it is no text"),
    (r"sample logprobs", "top_logprobs", None),
)  # fmt: skip
_TAIL = re.compile(r" \(parameter=.*\)$| To increase this limit, set .*$", re.DOTALL)
_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def is_clients_fault(error: Exception) -> bool:
    """Whether vLLM's own handlers would answer with 400."""
    template = any(kind.__name__ == "TemplateError" for kind in type(error).__mro__)
    return template or isinstance(error, VLLMClientError | ValueError | TypeError | OverflowError)


def named(error: Exception, request: BaseModel, prompt_field: str, max_model_len: int) -> RequestError:
    """vLLM's complaint as one that names a field of the request, where one is to blame."""
    parameter = error.parameter if isinstance(error, VLLMValidationError) else None
    if any(kind.__name__ == "TemplateError" for kind in type(error).__mro__):
        parameter = prompt_field
    if isinstance(error, OverflowError):
        parameter = next((name for name, value in request if _exceeds(value)), None)
        return _sentence(parameter, "a number of at most 64 bits is needed here")
    return named_text(str(error), parameter, request, prompt_field, max_model_len)


def _exceeds(value: Any) -> bool:
    """Whether a value holds a number that does not fit into 64 bits, which is all that can be sent to the engine."""
    if isinstance(value, dict):
        return any(_exceeds(part) for part in value.values())
    if isinstance(value, list | tuple):
        return any(_exceeds(part) for part in value)
    return isinstance(value, int) and not -(2**63) <= value < 2**64


def named_early(error: VLLMValidationError, fields: Collection[str]) -> RequestError:
    """The same of a complaint from a request model, before there is a request."""
    message = _TAIL.sub("", str(error))
    field, words = _blamed(message, error.parameter, fields)
    return _sentence(field, words)


def renamed(answer: ErrorResponse, request: BaseModel, prompt_field: str, max_model_len: int) -> ErrorResponse:
    """The same of an error that vLLM returns rather than raises."""
    error = answer.error
    if error.code == HTTPStatus.BAD_REQUEST:
        plain = named_text(error.message, error.param, request, prompt_field, max_model_len)
        error.message, error.param = str(plain), plain.param
    return answer


def named_text(
    message: str, parameter: str | None, request: BaseModel, prompt_field: str, max_model_len: int
) -> RequestError:
    """One complaint, told by its words and by the parameter that vLLM names."""
    message = _TAIL.sub("", message)
    field, words = _blamed(message, parameter, type(request).model_fields)
    if field in ("input_text", "input_tokens", PROMPT):
        field = prompt_field
    if field in _TOKENS_FIELDS:
        asked = next((name for name in _TOKENS_FIELDS if getattr(request, name, None) is not None), None)
        if "at least 1, got 0" in message and (asked is None or getattr(request, asked) != 0):
            # vLLM speaks of what it made of the field: what the prompt leaves of the context.
            field = prompt_field
            words = f"it fills the model's whole context of {max_model_len} tokens, and leaves none for the answer"
        elif asked is not None:
            field, words = asked, words.replace("max_tokens", asked)
    return _sentence(field, words)


def _sentence(field: str | None, words: str) -> RequestError:
    if field is None or words.startswith(field):
        return RequestError(words, field)
    return RequestError(f"{field}: {words}", field)


def _blamed(message: str, parameter: str | None, fields: Collection[str]) -> tuple[str | None, str]:
    for pattern, field, words in _SENTENCES:
        if re.search(pattern, message) and (field == PROMPT or field in fields):
            return field, words or message
    if parameter is not None:
        return parameter, message
    # Nearly all of vLLM's sentences name their field.
    mentions = {name: found.start() for name in fields if (found := re.search(rf"\b{name}\b", message))}
    if mentions.get("n", 0) > 0:  # a letter within a sentence
        del mentions["n"]
    return min(mentions, key=mentions.__getitem__, default=None), message
