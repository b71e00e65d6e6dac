"""One preset as a model: `GET /v1/models/{id}`, which vLLM does not have beside its list."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request
from vllm.entrypoints.serve.engine.protocol import ErrorResponse, ModelCard

from server.api.routes import preset_of
from server.api.state import state_of

router = APIRouter()


@router.get("/v1/models/{model:path}", responses={HTTPStatus.NOT_FOUND.value: {"model": ErrorResponse}})
async def retrieve_model(model: str, raw_request: Request) -> ModelCard:
    """The preset of this name, as `GET /v1/models` lists it."""
    name = preset_of(raw_request, model)
    models = await state_of(raw_request).openai_serving_models.show_available_models()
    return next(card for card in models.data if card.id == name)
