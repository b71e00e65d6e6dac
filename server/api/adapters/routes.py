"""The routes that load and unload adapters, with vLLM's bodies."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from server.api.adapters import Adapters
from server.api.errors import ERRORS, RequestError
from server.api.middleware import client_of
from server.api.state import state_of

router = APIRouter()

ROUTE: dict[str, Any] = {
    "dependencies": [Depends(validate_json_request)],
    "responses": ERRORS,
    "response_class": PlainTextResponse,
}


@router.post("/v1/load_lora_adapter", **ROUTE)
async def load_lora_adapter(request: LoadLoRAAdapterRequest, raw_request: Request) -> str:
    """Load a LoRA adapter over the base: from now on it is a model, and an expert, of this name."""
    adapters = _of_admin(raw_request)
    await adapters.load(request.lora_name, request.lora_path, in_place=request.load_inplace)
    return f"Success: LoRA adapter '{request.lora_name}' added successfully."


@router.post("/v1/unload_lora_adapter", **ROUTE)
async def unload_lora_adapter(request: UnloadLoRAAdapterRequest, raw_request: Request) -> str:
    """Unload an adapter. Requests that use it end as they would have."""
    adapters = _of_admin(raw_request)
    await adapters.unload(request.lora_name)
    return f"Success: LoRA adapter '{request.lora_name}' removed successfully."


def _of_admin(raw_request: Request) -> Adapters:
    """The server's adapters, for a client that may change them.

    Raises:
        RequestError: it may not, or nothing can be loaded here.
    """
    adapters = state_of(raw_request).adapters
    if adapters.settings.admin == "key" and not client_of(raw_request).admin:
        raise RequestError(
            "your key may not load adapters; one that may says `admin: true` in the server's keys file",
            None,
            HTTPStatus.FORBIDDEN,
        )
    return adapters
