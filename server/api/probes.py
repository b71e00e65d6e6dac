"""What an orchestrator asks: is the server alive, and may it be sent requests?"""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request, Response

router = APIRouter()


@router.get("/health", response_class=Response)
async def health(raw_request: Request) -> Response:
    """Liveness: 200 while the engine lives, also while the server drains; 503 when only a restart helps."""
    alive = not raw_request.app.state.engine_client.errored
    return Response(status_code=HTTPStatus.OK if alive else HTTPStatus.SERVICE_UNAVAILABLE)


@router.get("/ready", response_class=Response)
async def ready(raw_request: Request) -> Response:
    """Readiness: 200 when new requests are welcome; 503 while the server drains, or when the engine is dead."""
    state = raw_request.app.state
    welcome = not state.engine_client.errored and not state.admission.gate.draining
    return Response(status_code=HTTPStatus.OK if welcome else HTTPStatus.SERVICE_UNAVAILABLE)
