"""Anthropic's protocol, which coding agents speak: `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from vllm.entrypoints.anthropic.protocol import (
    AnthropicCountTokensResponse,
    AnthropicErrorResponse,
    AnthropicMessagesResponse,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import with_cancellation
from vllm.exceptions import VLLMValidationError

from server.api.allowed import Allowed
from server.api.deadline import within_deadline
from server.api.errors import ERRORS, RequestError
from server.api.generation import Answer, generate, naming_the_fault
from server.api.middleware import client_of
from server.api.requests import CountTokensRequest, FusionMessagesRequest
from server.api.routes import GENERATION
from server.api.state import state_of
from server.api.stream import MESSAGES
from server.api.texts import Sender, sender
from server.api.trace import attach_to_response
from server.errors import nearest

router = APIRouter()

ANTHROPIC_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": AnthropicErrorResponse} for status in ERRORS}
OK = HTTPStatus.OK.value
# Fields of vLLM's translation by the names that the client knows.
FIELDS = {
    "max_completion_tokens": "max_tokens",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "structured_outputs": "output_config.format",
    "thinking_token_budget": "thinking.budget_tokens",
}


@router.post(
    "/v1/messages",
    dependencies=GENERATION["dependencies"],
    responses={OK: {"model": AnthropicMessagesResponse, "content": {"text/event-stream": {}}}, **ANTHROPIC_ERRORS},
)
@with_cancellation
async def create_message(request: FusionMessagesRequest, raw_request: Request) -> Response:
    """Answer a conversation, in Anthropic's messages format."""
    serving = state_of(raw_request).messages
    chat = _translated(request, raw_request)

    async def create() -> Answer:
        try:
            answer: Answer = await serving.create_messages(request, raw_request)
        except VLLMValidationError as error:
            if (name := FIELDS.get(error.parameter or "")) is None:
                raise
            message = str(error).partition(" (parameter=")[0].replace(str(error.parameter), name)
            raise RequestError(f"{name}: {message}", name) from error
        return answer

    return await generate(raw_request, request, create, attach_to_response, MESSAGES, [chat])


@router.post(
    "/v1/messages/count_tokens",
    dependencies=GENERATION["dependencies"],
    responses={OK: {"model": AnthropicCountTokensResponse}, **ANTHROPIC_ERRORS},
)
@with_cancellation
async def count_tokens(request: CountTokensRequest, raw_request: Request) -> Response:
    """Count the tokens of a conversation, as `/v1/messages` would read it."""
    state = state_of(raw_request)
    _translated(request, raw_request)
    client = client_of(raw_request)
    state.openai_serving_models.answer_as(Allowed.to(client, state.config).preset(request.model, state.config))
    # Long texts wait for their turn in front of the tokenizer; a place in the engine is not needed.
    state.admission.admit(client)
    sender.set(Sender(client, len(await raw_request.body())))
    async with within_deadline(state.config.limits.request_timeout_s):
        answer = await naming_the_fault(
            lambda: state.messages.count_tokens(request, raw_request), request, "messages", state
        )
    if isinstance(answer, ErrorResponse):
        return JSONResponse(answer.model_dump(), status_code=answer.error.code)
    return JSONResponse(answer.model_dump(exclude_none=True))


def _translated(request: FusionMessagesRequest | CountTokensRequest, raw_request: Request) -> ChatCompletionRequest:
    """The request as a chat; raises what is wrong with it that vLLM's models of Anthropic's protocol let pass."""
    if not request.messages:
        raise RequestError("messages: at least one message is needed", "messages")
    try:
        chat = state_of(raw_request).messages.translate(request)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    except ValueError as error:
        raise RequestError(f"messages: {error}", "messages") from error
    choice = request.tool_choice
    names = [tool.function.name for tool in chat.tools or ()]
    if choice is not None and choice.type in ("any", "tool") and not names:
        raise RequestError(f"tool_choice: '{choice.type}' needs tools", "tool_choice")
    if choice is not None and choice.type == "tool" and choice.name not in names:
        hint = nearest(str(choice.name), names)
        raise RequestError(f"tool_choice.name: there is no tool {choice.name!r:.100}; {hint}", "tool_choice.name")
    return chat
