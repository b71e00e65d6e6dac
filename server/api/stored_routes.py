"""Answers of `/v1/responses` that were stored: read, cancelled and deleted by the key that asked for them.

These routes wait for no place: they generate nothing.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from vllm.entrypoints.openai.responses.api_router import (  # the same events as vLLM's own route sends
    _convert_stream_to_sse_events,
)
from vllm.entrypoints.openai.responses.protocol import ResponsesResponse

from server.api.errors import ERRORS
from server.api.state import state_of
from server.api.stream import RESPONSES, ClosingStream, until

router = APIRouter()

STORED: dict[str, Any] = {"responses": {200: {"model": ResponsesResponse}, **ERRORS}}


@router.get("/v1/responses/{response_id}", **STORED)
async def retrieve_response(
    response_id: str,
    raw_request: Request,
    stream: Annotated[bool, Query(description="Send the events of a streamed background response again.")] = False,
    starting_after: Annotated[
        int | None, Query(ge=0, le=2**31, description="With `stream`: only the events after this `sequence_number`.")
    ] = None,
) -> Response:
    """A stored response, as it is now."""
    answer = await state_of(raw_request).responses.retrieve_responses(response_id, starting_after, stream)
    if isinstance(answer, BaseModel):
        return JSONResponse(answer.model_dump(mode="json", by_alias=True))
    seconds = state_of(raw_request).config.limits.request_timeout_s
    deadline = asyncio.get_running_loop().time() + seconds
    return ClosingStream(until(seconds, deadline, _convert_stream_to_sse_events(answer), RESPONSES), lambda: None)


@router.post("/v1/responses/{response_id}/cancel", **STORED)
async def cancel_response(response_id: str, raw_request: Request) -> JSONResponse:
    """Stop making a background response."""
    answer = await state_of(raw_request).responses.cancel_responses(response_id)
    return JSONResponse(answer.model_dump(mode="json", by_alias=True))


@router.delete("/v1/responses/{response_id}", responses=ERRORS)
async def delete_response(response_id: str, raw_request: Request) -> JSONResponse:
    """Forget a stored response; one that is still being made is cancelled."""
    return JSONResponse(await state_of(raw_request).responses.delete_responses(response_id))
