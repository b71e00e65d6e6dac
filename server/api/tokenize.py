"""The shared tokenizer over HTTP: vLLM's own routes, with the limits of every other request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from vllm.config import ModelConfig
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.tokenize.protocol import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
    TokenizeResponse,
)
from vllm.entrypoints.serve.utils.api_utils import validate_json_request, with_cancellation
from vllm.renderers import TokenizeParams

from server.api.deadline import within_deadline
from server.api.errors import ERRORS, RequestError
from server.api.generation import naming_the_fault
from server.api.middleware import client_of
from server.api.state import state_of
from server.api.texts import Sender, sender

router = APIRouter()


class BoundedText(BaseModel):
    """What the two forms of a request to `/tokenize` share: no more than the context can hold."""

    def build_tok_params(self, model_config: ModelConfig) -> TokenizeParams:
        """As vLLM's, which has no bound here."""
        params: TokenizeParams = super().build_tok_params(model_config)  # type: ignore[misc]
        return replace(params, max_total_tokens=model_config.max_model_len)


class TokenizeTextRequest(BoundedText, TokenizeCompletionRequest):
    """`POST /tokenize` of a text."""


class TokenizeMessagesRequest(BoundedText, TokenizeChatRequest):
    """`POST /tokenize` of a conversation."""


@router.post(
    "/tokenize", dependencies=[Depends(validate_json_request)], responses=ERRORS, response_model=TokenizeResponse
)
@with_cancellation
async def tokenize(request: TokenizeTextRequest | TokenizeMessagesRequest, raw_request: Request) -> Response:
    """The ids of a text, or of a conversation as the chat template writes it; no longer than the context."""
    serving = state_of(raw_request).serving_tokenization
    field = "prompt" if isinstance(request, TokenizeTextRequest) else "messages"
    return await _answer(raw_request, request, field, lambda: serving.create_tokenize(request, raw_request))


@router.post(
    "/detokenize", dependencies=[Depends(validate_json_request)], responses=ERRORS, response_model=DetokenizeResponse
)
@with_cancellation
async def detokenize(request: DetokenizeRequest, raw_request: Request) -> Response:
    """The text of token ids; no more than the context has."""
    state = state_of(raw_request)
    most = state.engine_client.model_config.max_model_len
    if len(request.tokens) > most:
        raise RequestError(f"tokens: at most {most} fit into the context, not {len(request.tokens)}", "tokens")
    serving = state.serving_tokenization
    return await _answer(raw_request, request, "tokens", lambda: serving.create_detokenize(request, raw_request))


async def _answer(
    raw_request: Request, request: BaseModel, field: str, create: Callable[[], Awaitable[BaseModel]]
) -> Response:
    state, client = state_of(raw_request), client_of(raw_request)
    state.admission.admit(client)
    sender.set(Sender(client, len(await raw_request.body())))
    async with within_deadline(state.config.limits.request_timeout_s):
        answer = await naming_the_fault(create, request, field, state)
    status = answer.error.code if isinstance(answer, ErrorResponse) else 200
    return JSONResponse(answer.model_dump(), status_code=status)
