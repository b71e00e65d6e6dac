"""How busy the server is, for routers that choose between servers: `/load`, and a header on answers."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request
from vllm.entrypoints.serve.utils.orca_metrics import create_orca_header, get_named_metrics_from_prometheus

from server.admission import Gate

HEADER = "endpoint-load-metrics-format"
FORMATS = ("text", "json")
WAITING = "num_requests_waiting"

router = APIRouter()


@router.get("/load")
async def load(raw_request: Request) -> dict[str, int]:
    """The requests that are being answered, and those that wait for a place: `{"server_load": 3}`, as vLLM has it."""
    policy = _gate(raw_request).policy
    # Tickets beside a request's own are more sequences of it.
    return {"server_load": sum(not ticket.extra for ticket in (*policy.running, *policy.waiting))}


def load_header(raw_request: Request) -> Mapping[str, str] | None:
    """vLLM's header `endpoint-load-metrics`, for requests that ask for it in a format that there is.

    Requests wait in front of the engine here, so those count too, which vLLM does not know of.
    """
    asked = raw_request.headers.get(HEADER, "")
    if asked.lower() not in FORMATS:
        return None
    metrics: dict[str, float] = {}
    for name, value in get_named_metrics_from_prometheus():  # one of each name from every engine
        metrics[name] = metrics.get(name, 0.0) + value if name == WAITING else max(metrics.get(name, 0.0), value)
    metrics[WAITING] = metrics.get(WAITING, 0.0) + len(_gate(raw_request).policy.waiting)
    return create_orca_header(asked, list(metrics.items()))


def _gate(raw_request: Request) -> Gate:
    gate: Gate = raw_request.app.state.admission.gate
    return gate
