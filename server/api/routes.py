"""The routes that generate, and the list of members."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesResponse
from vllm.entrypoints.openai.responses.api_router import (  # the same events as vLLM's own route sends
    _convert_stream_to_sse_events,
)
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request, with_cancellation
from vllm.v1.engine.exceptions import EngineDeadError

from server.api.admission import check_preset
from server.api.errors import ERRORS, RequestError, naming_the_prompt
from server.api.fusion import resolve
from server.api.load import load_header
from server.api.middleware import client_of
from server.api.requests import (
    FusionBatchRequest,
    FusionChatCompletionRequest,
    FusionCompletionRequest,
    FusionMessagesRequest,
    FusionRequest,
    FusionResponsesRequest,
)
from server.api.state import state_of
from server.api.stream import CHAT, RESPONSES, ClosingStream, Protocol, until
from server.api.trace import Attach, attach_to_choices, attach_to_events, attach_to_response
from server.engine.place import place
from server.errors import nearest

router = APIRouter()

GENERATION: dict[str, Any] = {
    "dependencies": [Depends(validate_json_request)],
    "responses": {HTTPStatus.OK.value: {"content": {"text/event-stream": {}}}, **ERRORS},
}

PROMPT_FIELDS: dict[type[FusionRequest], str] = {
    FusionBatchRequest: "messages",
    FusionChatCompletionRequest: "messages",
    FusionCompletionRequest: "prompt",
    FusionMessagesRequest: "messages",
    FusionResponsesRequest: "input",
}

Answer = ErrorResponse | BaseModel | AsyncIterator[str]


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


@router.get("/v1/fusion/experts")
async def list_members(raw_request: Request) -> JSONResponse:
    """The large model, the base and the experts, with their sizes, and the presets over them."""
    return JSONResponse(state_of(raw_request).members)


def preset_of(raw_request: Request, asked: str | None) -> str:
    """The preset that a request names, or the first one.

    Raises:
        RequestError: there is none of that name, or the client's key does not allow it.
    """
    config = state_of(raw_request).config
    name = asked or config.default_preset
    if name not in config.presets:
        raise RequestError(
            f"model: there is no preset {name!r:.100}; {nearest(name, config.presets)}", "model", HTTPStatus.NOT_FOUND
        )
    check_preset(client_of(raw_request), name)
    return name


async def generate(
    raw_request: Request,
    request: FusionRequest,
    create: Callable[[], Awaitable[Answer]],
    attaching: Callable[..., Attach],
    protocol: Protocol = CHAT,
) -> Response:
    """Settle the request's fusion, find it a place, let vLLM's serving class answer, and add the trace if asked for."""
    state = state_of(raw_request)
    config, engine, client = state.config, state.engine_client, client_of(raw_request)
    if engine.errored:
        raise EngineDeadError
    name = preset_of(raw_request, request.model)  # type: ignore[attr-defined]
    settings = resolve(request.fusion, config.presets[name], config)
    if settings.experts and getattr(request, "use_beam_search", False):
        raise RequestError(
            "use_beam_search: beams are searched by the large model only; drop it, or ask for weighting 'none'",
            "use_beam_search",
        )
    state.openai_serving_models.answer_as(name)
    attach = None
    trace = engine.open_trace() if request.fusion is not None and request.fusion.trace else None
    if trace is not None:
        attach = attaching(trace, list(config.experts), settings.experts)
    request.fuse_with(settings, trace)

    seconds = config.limits.request_timeout_s
    deadline = asyncio.get_running_loop().time() + seconds
    claim = state.admission.claim(client, request, raw_request, settings)
    place.set(claim)
    close, behind = claim.close, isinstance(request, FusionResponsesRequest) and bool(request.background)
    try:
        async with asyncio.timeout_at(deadline) as timeout:
            answer = await naming_the_prompt(PROMPT_FIELDS[type(request)], create)
            if timeout.expired():  # vLLM turns the cancellation into an answer, "Client disconnected"
                raise TimeoutError
            if behind and not isinstance(answer, ErrorResponse):
                attach, close = None, _nothing  # what generates behind the answer holds the place, and the trace
            headers = load_header(raw_request)
            if isinstance(answer, BaseModel):
                close()
                return _json(answer, attach, headers)
            # A stream has not asked the engine yet: whoever is refused gets a status rather than an event.
            if not behind:
                await claim.wait()
    except BaseException as error:
        close()
        if isinstance(error, TimeoutError) and timeout.expired():
            message = f"the request took longer than the {seconds:g} s that it may take"
            raise HTTPException(HTTPStatus.GATEWAY_TIMEOUT, message) from None
        raise
    if attach is not None:
        answer = attach_to_events(answer, attach)
    return ClosingStream(until(seconds, deadline, answer, protocol), close, headers)


def _nothing() -> None:
    pass


def _json(answer: BaseModel, attach: Attach | None, headers: Mapping[str, str] | None) -> Response:
    if isinstance(answer, ErrorResponse):
        return JSONResponse(answer.model_dump(), status_code=answer.error.code)
    # Anthropic's blocks have the keys of their own kind only.
    body = answer.model_dump(mode="json", by_alias=True, exclude_none=isinstance(answer, AnthropicMessagesResponse))
    if attach is not None:
        attach(body)
    return JSONResponse(body, headers=headers)
