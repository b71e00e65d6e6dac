"""The routes that generate, and the list of members."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
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
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from server.api.admission import check_preset
from server.api.completions import attach_text_offsets, only_echoes
from server.api.errors import RequestError
from server.api.faults import is_clients_fault, named, renamed
from server.api.fusion import resolve
from server.api.middleware import client_of
from server.api.requests import (
    FusionChatCompletionRequest,
    FusionCompletionRequest,
    FusionRequest,
    FusionResponsesRequest,
    check_extra_arguments,
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
    """The large model, the base and the experts, with their sizes, and the presets over them."""
    return JSONResponse(_state(raw_request).members)


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
    check_extra_arguments(request)
    state.openai_serving_models.answer_as(name)
    asked_to_trace = request.fusion is not None and request.fusion.trace and not only_echoes(request)
    trace = engine.open_trace() if asked_to_trace else None
    attaches = [] if trace is None else [attaching(trace, list(config.experts), settings.experts)]
    if isinstance(request, FusionCompletionRequest) and request.echo and request.logprobs is not None:
        attaches.append(partial(attach_text_offsets, special=engine.get_tokenizer().all_special_tokens, hidden={}))
    request.fuse_with(settings, trace)

    seconds = config.limits.request_timeout_s
    deadline = asyncio.get_running_loop().time() + seconds
    claim = state.admission.claim(client, request, raw_request, settings)
    place.set(claim)
    try:
        async with asyncio.timeout_at(deadline) as timeout:
            await state.structures.check(request)
            answer = await _naming_the_fault(create, request, state)
            if timeout.expired():  # vLLM turns the cancellation into an answer, "Client disconnected"
                raise TimeoutError
            if isinstance(answer, BaseModel):
                claim.close()
                return _json(answer, attaches)
            # A stream has not asked the engine yet: whoever is refused gets a status rather than an event.
            await claim.wait()
    except BaseException as error:
        claim.close()
        if isinstance(error, TimeoutError) and timeout.expired():
            message = f"the request took longer than the {seconds:g} s that it may take"
            raise HTTPException(HTTPStatus.GATEWAY_TIMEOUT, message) from None
        raise
    for attach in attaches:
        answer = attach_to_events(answer, attach)
    events = until(seconds, deadline, answer, named_events=isinstance(request, FusionResponsesRequest))
    return ClosingStream(events, claim.close)


async def _naming_the_fault(
    create: Callable[[], Awaitable[Answer]], request: FusionRequest, state: ServerState
) -> Answer:
    """Of what it refuses, vLLM names parameters of its own code, or none; the client knows a field."""
    told = (request, PROMPT_FIELDS[type(request)], state.engine_client.model_config.max_model_len)
    try:
        answer = await create()
    except Exception as error:
        cause = error.__cause__ if isinstance(error, EngineGenerateError) else error
        if not isinstance(cause, Exception) or isinstance(cause, UnicodeEncodeError) or not is_clients_fault(cause):
            raise
        raise named(cause, *told) from error
    return renamed(answer, *told) if isinstance(answer, ErrorResponse) else answer


def _json(answer: BaseModel, attaches: Sequence[Attach]) -> Response:
    if isinstance(answer, ErrorResponse):
        return JSONResponse(answer.model_dump(), status_code=answer.error.code)
    body = answer.model_dump(mode="json", by_alias=True)
    for attach in attaches:
        attach(body)
    return JSONResponse(body)
