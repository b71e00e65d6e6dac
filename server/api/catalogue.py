"""What there is to ask for, as far as a client's key goes: presets as OpenAI's models, and the members behind them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse, ModelCard

from server.api.allowed import Allowed
from server.api.middleware import client_of
from server.api.state import ServerState

router = APIRouter()


@router.get("/v1/models")
async def list_models(raw_request: Request) -> JSONResponse:
    """The presets, as OpenAI lists models."""
    state: ServerState = raw_request.app.state
    models = await state.openai_serving_models.show_available_models()
    presets = allowed_to(raw_request).presets
    models.data = [model for model in models.data if model.id in presets]
    return JSONResponse(models.model_dump())


@router.get(
    "/v1/models/{model:path}",
    response_model=ModelCard,
    responses={HTTPStatus.NOT_FOUND.value: {"model": ErrorResponse}},
)
async def retrieve_model(model: str, raw_request: Request) -> Any:
    """The preset of this name, as the list has it."""
    if not model:  # as everywhere, a slash at the end leads to the path without it
        return RedirectResponse(raw_request.url_for(list_models.__name__))
    state: ServerState = raw_request.app.state
    name = allowed_to(raw_request).preset(model, state.config)
    models = await state.openai_serving_models.show_available_models()
    return next(card for card in models.data if card.id == name)


@router.get("/v1/fusion/experts")
async def list_members(raw_request: Request) -> JSONResponse:
    """The large model, the base and the experts, with their sizes; the presets over them, and the weightings."""
    state: ServerState = raw_request.app.state
    return JSONResponse(allowed_to(raw_request).members(state.adapters.report.as_dict()))


def allowed_to(raw_request: Request) -> Allowed:
    """What the client that sent this request may use."""
    return Allowed.to(client_of(raw_request), raw_request.app.state.config)
