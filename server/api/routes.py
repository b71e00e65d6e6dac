"""The routes that generate, and the list of members."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from vllm.entrypoints.openai.responses.api_router import (  # the same events as vLLM's own route sends
    _convert_stream_to_sse_events,
)
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, validate_json_request, with_cancellation
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from fusion_kernels import Weighting
from server.api.admission import check_preset
from server.api.errors import RequestError
from server.api.fusion import resolve
from server.api.middleware import client_of
from server.api.requests import (
    FusionChatCompletionRequest,
    FusionCompletionRequest,
    FusionRequest,
    FusionResponsesRequest,
)
from server.api.state import ServerState
from server.api.stream import ClosingStream, until
from server.api.trace import Attach, attach_to_choices, attach_to_events, attach_to_response
from server.engine.place import place
from server.errors import nearest

router = APIRouter()

ERRORS: dict[int | str, dict[str, Any]] = {
    status.value: {"model": ErrorResponse}
    for status in (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    )
}
GENERATION: dict[str, Any] = {
    "dependencies": [Depends(validate_json_request)],
    "responses": {HTTPStatus.OK.value: {"content": {"text/event-stream": {}}}, **ERRORS},
}

PROMPT_FIELDS: dict[type[FusionRequest], str] = {
    FusionChatCompletionRequest: "messages",
    FusionCompletionRequest: "prompt",
    FusionResponsesRequest: "input",
}

Answer = ErrorResponse | BaseModel | AsyncIterator[str]


@router.post("/v1/chat/completions", **GENERATION)
@with_cancellation
@load_aware_call
async def create_chat_completion(request: FusionChatCompletionRequest, raw_request: Request) -> Response:
    """Answer a conversation, in OpenAI's chat format."""
    state = _state(raw_request)
    if not request.messages:
        raise RequestError("messages: at least one message is needed", "messages")
    return await _generate(
        raw_request, request, lambda: state.chat.create_chat_completion(request, raw_request), attach_to_choices
    )


@router.post("/v1/completions", **GENERATION)
@with_cancellation
@load_aware_call
async def create_completion(request: FusionCompletionRequest, raw_request: Request) -> Response:
    """Continue a text, in OpenAI's completions format."""
    state = _state(raw_request)
    return await _generate(
        raw_request, request, lambda: state.completion.create_completion(request, raw_request), attach_to_choices
    )


@router.post("/v1/responses", **GENERATION)
@with_cancellation
@load_aware_call
async def create_response(request: FusionResponsesRequest, raw_request: Request) -> Response:
    """Answer in OpenAI's responses format."""
    state = _state(raw_request)

    async def create() -> Answer:
        answer = await state.responses.create_responses(request, raw_request)
        if isinstance(answer, BaseModel):
            return answer
        return _convert_stream_to_sse_events(answer)

    return await _generate(raw_request, request, create, attach_to_response)


@router.get("/v1/fusion/experts")
async def list_members(raw_request: Request) -> JSONResponse:
    """The large model, the base and the experts, with their sizes, the presets over them, and the weightings."""
    return JSONResponse({**_state(raw_request).members, "weightings": [row.as_dict() for row in Weighting]})


def _state(raw_request: Request) -> ServerState:
    state: ServerState = raw_request.app.state
    return state


async def _generate(
    raw_request: Request,
    request: FusionRequest,
    create: Callable[[], Awaitable[Answer]],
    attaching: Callable[..., Attach],
) -> Response:
    """Settle the request's fusion, find it a place, let vLLM's serving class answer, and add the trace if asked for."""
    state = _state(raw_request)
    config, engine, client = state.config, state.engine_client, client_of(raw_request)
    if engine.errored:
        raise EngineDeadError
    asked: str | None = request.model  # type: ignore[attr-defined]
    name = asked or config.default_preset
    if name not in config.presets:
        raise RequestError(
            f"model: there is no preset {name!r:.100}; {nearest(name, config.presets)}", "model", HTTPStatus.NOT_FOUND
        )
    check_preset(client, name)
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
    try:
        async with asyncio.timeout_at(deadline) as timeout:
            answer = await _naming_the_prompt(create, request)
            if timeout.expired():  # vLLM turns the cancellation into an answer, "Client disconnected"
                raise TimeoutError
            if isinstance(answer, BaseModel):
                claim.close()
                return _json(answer, attach)
            # A stream has not asked the engine yet: whoever is refused gets a status rather than an event.
            await claim.wait()
    except BaseException as error:
        claim.close()
        if isinstance(error, TimeoutError) and timeout.expired():
            message = f"the request took longer than the {seconds:g} s that it may take"
            raise HTTPException(HTTPStatus.GATEWAY_TIMEOUT, message) from None
        raise
    if attach is not None:
        answer = attach_to_events(answer, attach)
    events = until(seconds, deadline, answer, named_events=isinstance(request, FusionResponsesRequest))
    return ClosingStream(events, claim.close)


async def _naming_the_prompt(create: Callable[[], Awaitable[Answer]], request: FusionRequest) -> Answer:
    """Of a prompt that is too long, vLLM names a parameter of its own code; the client knows it by another name."""
    try:
        return await create()
    except VLLMValidationError as error:
        if error.parameter not in ("input_text", "input_tokens"):
            raise
        field = PROMPT_FIELDS[type(request)]
        message = str(error).partition(" (parameter=")[0]
        raise RequestError(f"{field}: {message}", field) from error


def _json(answer: BaseModel, attach: Attach | None) -> Response:
    if isinstance(answer, ErrorResponse):
        return JSONResponse(answer.model_dump(), status_code=answer.error.code)
    body = answer.model_dump(mode="json", by_alias=True)
    if attach is not None:
        attach(body)
    return JSONResponse(body)
