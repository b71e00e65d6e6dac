"""The route that shows what clients have used."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from server.api.errors import ERRORS, RequestError
from server.api.middleware import client_of
from server.api.state import state_of
from server.auth import ANYBODY

router = APIRouter()


@router.get("/v1/fusion/usage", responses=ERRORS)
async def show_usage(raw_request: Request) -> JSONResponse:
    """What each client has used since the server started: for keys that say `admin: true`, or where there are none.

    Raises:
        RequestError: the key says no such thing.
    """
    state, client = state_of(raw_request), client_of(raw_request)
    if client is not ANYBODY and not client.admin:
        raise RequestError(
            "your key may not see what others use; one that may says `admin: true` in the server's keys file",
            None,
            HTTPStatus.FORBIDDEN,
        )
    return JSONResponse({"clients": state.usage.as_dict()})
