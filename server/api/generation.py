"""From a request that is read to its answer: settled, placed, answered by one of vLLM's serving classes, traced."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import NamedTuple, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from server.api.allowed import Allowed
from server.api.cache import cache_salt
from server.api.claim import Claim
from server.api.completions import attach_text_offsets, only_echoes
from server.api.deadline import within_deadline
from server.api.errors import RequestError
from server.api.faults import is_clients_fault, named, renamed
from server.api.fusion import resolve
from server.api.load import load_header
from server.api.middleware import client_of
from server.api.prompts import with_own_prompts
from server.api.requests import (
    FusionBatchRequest,
    FusionChatCompletionRequest,
    FusionCompletionRequest,
    FusionMessagesRequest,
    FusionRequest,
    FusionResponsesRequest,
    check_extra_arguments,
)
from server.api.routing import RouteField
from server.api.span import RequestSpan
from server.api.split import ArmField, arm_of
from server.api.state import ServerState, state_of
from server.api.stream import CHAT, ClosingStream, Protocol, placed, until
from server.api.texts import Sender, sender
from server.api.trace import Attach, OnceField, attach_once, attach_to_choices, attach_to_events
from server.api.unknown_fields import warn_of_unknown_fields
from server.engine.place import place
from server.engine.routing.choosing import Choice
from server.engine.settings import FusionSettings

PROMPT_FIELDS: dict[type[FusionRequest], str] = {
    FusionBatchRequest: "messages",
    FusionChatCompletionRequest: "messages",
    FusionCompletionRequest: "prompt",
    FusionMessagesRequest: "messages",
    FusionResponsesRequest: "input",
}

Answer = ErrorResponse | BaseModel | AsyncIterator[str]
Made = TypeVar("Made")


class _Settled(NamedTuple):
    """What a request asks of the engine, and what is added to its answer."""

    settings: FusionSettings
    preset: str
    """The one that was asked for, which may leave the answer to another."""
    attaches: list[Attach]
    fields: list[OnceField]
    steering: list[str]
    """The experts that steer it; filled later where a router chooses them."""


async def generate(
    raw_request: Request,
    request: FusionRequest,
    create: Callable[[], Awaitable[Answer]],
    attaching: Callable[..., Attach],
    protocol: Protocol = CHAT,
    checked: Sequence[BaseModel] | None = None,
) -> Response:
    """Settle the request's fusion, find it a place, let vLLM's serving class answer, and add the trace if asked for.

    `checked` are the requests whose constraints are tried beforehand, where it is not `request` in its parts.
    """
    state = state_of(raw_request)
    limits, client = state.config.limits, client_of(raw_request)
    seconds, keep_alive_s = limits.request_timeout_s, limits.keep_alive_s
    deadline = asyncio.get_running_loop().time() + seconds
    span, waiting = RequestSpan(raw_request, request), False
    close, behind = span.end, isinstance(request, FusionResponsesRequest) and bool(request.background)
    try:
        warning = warn_of_unknown_fields(request, limits.unknown_fields)
        settled = _settle(raw_request, request, attaching)
        settings, attaches, fields = settled.settings, settled.attaches, settled.fields
        claim = _claim(raw_request, request, settled, span)
        close = claim.close
        place.set(claim)
        sender.set(Sender(client, len(await raw_request.body())))
        async with within_deadline(seconds, deadline):
            for part in request.parts if checked is None else checked:
                await state.structures.check(part)
            await _settle_prompts(request, settings, claim, state)
            answer = await naming_the_fault(create, request, PROMPT_FIELDS[type(request)], state)
            if behind and not isinstance(answer, ErrorResponse):
                attaches, close = [], _nothing  # what generates behind the answer holds the place, and the trace
            elif not isinstance(answer, BaseModel):
                # A stream has not asked the engine yet: whoever is refused soon gets a status rather than an event.
                waiting = True
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(keep_alive_s):
                        await claim.wait()
                        waiting = False
            if isinstance(answer, ErrorResponse):
                span.refuse(HTTPStatus(answer.error.code))
    except BaseException as error:
        span.fail(error)
        close()
        raise
    headers = {**(load_header(raw_request) or {}), **warning}
    if isinstance(answer, BaseModel):
        close()
        return _json(answer, [*attaches, *(field.attach for field in fields)], headers)
    for field in () if behind else fields:
        answer = attach_once(answer, field)
    for attach in attaches:
        answer = attach_to_events(answer, attach)
    events = answer if behind else placed(claim.wait, answer, waiting)
    return ClosingStream(until(seconds, deadline, events, span.watch(protocol)), close, keep_alive_s, headers)


async def _settle_prompts(request: FusionRequest, settings: FusionSettings, claim: Claim, state: ServerState) -> None:
    """Have each of the request's parts say what members read in the place of its prompt."""
    if not settings.experts and not (request.fusion and request.fusion.prompts):
        return
    preset = list(state.config.presets.values())[settings.preset]
    for part in request.parts:
        own = await with_own_prompts(part, request.fusion, settings, preset, state)
        part.settle(own)
        claim.weigh(state.admission.weight(own))


def _claim(raw_request: Request, request: FusionRequest, settled: _Settled, span: RequestSpan) -> Claim:
    """The request's claim on the engine, on its members, and on what its client has used; its end is the span's."""
    state, client = state_of(raw_request), client_of(raw_request)
    settings = settled.settings
    arm = list(state.config.presets)[settings.preset]
    span.settled(settled.preset, arm, settings, settled.steering)
    claim = state.admission.claim(client, request, raw_request, settings)
    claim.follows = settled.fields
    claim.meter(state.usage.meter(client.name, arm, settled.steering))
    claim.at_end(state.adapters.hold(settings))
    beside = [(span.add, span.end), state.shadows.listen(settled.preset, client, request)]
    if state.config.presets[settled.preset].split is not None:
        beside.append(state.splits.count(settled.preset, arm))
    for meter, at_end in filter(None, beside):
        claim.meter(meter)
        claim.at_end(at_end)
    return claim


def _settle(raw_request: Request, request: FusionRequest, attaching: Callable[..., Attach]) -> _Settled:
    state, client = state_of(raw_request), client_of(raw_request)
    config, engine = state.config, state.engine_client
    if engine.errored:
        raise EngineDeadError
    allowed = Allowed.to(client, config)
    asked = allowed.preset(request.model, config)  # type: ignore[attr-defined]
    name = arm_of(asked, config, client, request)
    settings = resolve(request.fusion, config.presets[name], config, allowed)
    if settings.experts and getattr(request, "use_beam_search", False):
        raise RequestError(
            "use_beam_search: beams are searched by the large model only; drop it, or ask for weighting 'none'",
            "use_beam_search",
        )
    check_extra_arguments(request)
    state.openai_serving_models.answer_as(asked)
    asked_to_trace = request.fusion is not None and request.fusion.trace and not only_echoes(request)
    trace = engine.open_trace(settings.drafter is not None) if asked_to_trace else None
    experts = list(config.experts)
    steering = [experts[expert] for expert in settings.experts]
    fields: list[OnceField] = [] if config.presets[asked].split is None else [ArmField(name)]
    if settings.route is not None:
        steering.clear()  # until the router has chosen
        routed = engine.open_route(settings.route.router, partial(_heard, state, name, steering))
        settings = replace(settings, route=settings.route._replace(name=routed.key))
        fields.append(RouteField(routed, config.experts, in_choices=attaching is attach_to_choices))
    attaches = [] if trace is None else [attaching(trace, experts, settings.experts)]
    if isinstance(request, FusionCompletionRequest) and request.echo and request.logprobs is not None:
        attaches.append(partial(attach_text_offsets, special=engine.get_tokenizer().all_special_tokens, hidden={}))
    request.fuse_with(settings, trace)
    salt = cache_salt(client, request.cache_salt, config.auth.share_prefix_cache)  # type: ignore[attr-defined]
    request.cache_salt = salt  # type: ignore[attr-defined]
    return _Settled(settings, asked, attaches, fields, steering)


def _heard(state: ServerState, preset: str, steering: list[str], choice: Choice) -> None:
    """A router has chosen the experts that steer."""
    chosen = [list(state.config.experts)[expert] for expert in choice.experts]
    steering += [expert for expert in chosen if expert not in steering]
    state.routes.count(preset, chosen)


async def naming_the_fault(
    create: Callable[[], Awaitable[Made]], request: BaseModel, prompt_field: str, state: ServerState
) -> Made | ErrorResponse:
    """Of what it refuses, vLLM names parameters of its own code, or none; the client knows a field."""
    told = (request, prompt_field, state.engine_client.model_config.max_model_len)
    try:
        answer = await create()
    except Exception as error:
        cause = error.__cause__ if isinstance(error, EngineGenerateError) else error
        if not isinstance(cause, Exception) or isinstance(cause, UnicodeEncodeError) or not is_clients_fault(cause):
            raise
        raise named(cause, *told) from error
    return renamed(answer, *told) if isinstance(answer, ErrorResponse) else answer


def _nothing() -> None:
    pass


def _json(answer: BaseModel, attaches: Sequence[Attach], headers: Mapping[str, str] | None) -> Response:
    if isinstance(answer, ErrorResponse):
        return JSONResponse(answer.model_dump(), status_code=answer.error.code)
    # Anthropic's blocks have the keys of their own kind only.
    body = answer.model_dump(mode="json", by_alias=True, exclude_none=isinstance(answer, AnthropicMessagesResponse))
    for attach in attaches:
        attach(body)
    return JSONResponse(body, headers=headers)
