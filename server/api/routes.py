"""The routes that generate, in OpenAI's forms."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError
from vllm.entrypoints.openai.responses.api_router import (  # the same events as vLLM's own route sends
    _convert_stream_to_sse_events,
)
from vllm.entrypoints.serve.utils.api_utils import validate_json_request, with_cancellation

from server.api.errors import ERRORS, RequestError
from server.api.generation import Answer, generate
from server.api.requests import (
    FusionBatchRequest,
    FusionChatCompletionRequest,
    FusionCompletionRequest,
    FusionResponsesRequest,
)
from server.api.state import state_of
from server.api.stream import RESPONSES
from server.api.trace import attach_to_choices, attach_to_response

router = APIRouter()

GENERATION: dict[str, Any] = {
    "dependencies": [Depends(validate_json_request)],
    "responses": {HTTPStatus.OK.value: {"content": {"text/event-stream": {}}}, **ERRORS},
}


@router.post("/v1/chat/completions", **GENERATION)
@with_cancellation
async def create_chat_completion(request: FusionChatCompletionRequest, raw_request: Request) -> Response:
    """Answer a conversation, in OpenAI's chat format."""
    state = state_of(raw_request)
    if not request.messages:
        raise RequestError("messages: at least one message is needed", "messages")
    return await generate(
        raw_request, request, lambda: state.chat.create_chat_completion(request, raw_request), attach_to_choices
    )


@router.post("/v1/chat/completions/batch", dependencies=GENERATION["dependencies"], responses=ERRORS)
@with_cancellation
async def create_batch(request: FusionBatchRequest, raw_request: Request) -> Response:
    """Answer several conversations at once, one choice for each; no streams, no tools."""
    state = state_of(raw_request)
    most = state.config.limits.max_prompts
    if len(request.messages) > most:
        raise RequestError(
            f"messages: at most {most} conversations are allowed in one request, not {len(request.messages)}",
            "messages",
        )
    try:
        _ = request.chats
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    return await generate(
        raw_request, request, lambda: state.batch.create_batch_chat_completion(request, raw_request), attach_to_choices
    )


@router.post("/v1/completions", **GENERATION)
@with_cancellation
async def create_completion(request: FusionCompletionRequest, raw_request: Request) -> Response:
    """Continue a text, in OpenAI's completions format."""
    state = state_of(raw_request)
    tokenizer = state.engine_client.get_tokenizer()
    request.begin_with(next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None))
    return await generate(
        raw_request, request, lambda: state.completion.create_completion(request, raw_request), attach_to_choices
    )


@router.post("/v1/responses", **GENERATION)
@with_cancellation
async def create_response(request: FusionResponsesRequest, raw_request: Request) -> Response:
    """Answer in OpenAI's responses format; `background` answers at once, and generates behind it."""
    state = state_of(raw_request)

    async def create() -> Answer:
        answer = await state.responses.create_responses(request, raw_request)
        if isinstance(answer, BaseModel):
            return answer
        return _convert_stream_to_sse_events(answer)

    return await generate(raw_request, request, create, attach_to_response, RESPONSES)
