"""How a request's span tells of what went wrong; tests/e2e/test_tracing.py has what went well."""

from __future__ import annotations

from asyncio import CancelledError
from http import HTTPStatus

import pytest
from fastapi import Request
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from vllm.v1.engine.exceptions import EngineDeadError

from server.admission import AdmissionError
from server.admission.policy import Reason
from server.api import span as room
from server.api.errors import RequestError
from server.api.requests import FusionCompletionRequest
from server.api.span import RequestSpan
from server.api.stream import CHAT
from server.auth import ANYBODY


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What has ended; the module's tracer is one that records."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(room, "_tracer", provider.get_tracer("test"))
    return exporter


@pytest.fixture
def raw_request() -> Request:
    headers = [(b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), (b"x-request-id", b"a")]
    return Request({"type": "http", "headers": headers, "state": {"client": ANYBODY}})


@pytest.fixture
def span(ended: InMemorySpanExporter, raw_request: Request) -> RequestSpan:
    return RequestSpan(raw_request, FusionCompletionRequest(model="giant", prompt="Hello"))


def only(ended: InMemorySpanExporter) -> ReadableSpan:
    (found,) = ended.get_finished_spans()
    return found


@pytest.mark.parametrize(
    ("error", "name", "status"),
    [
        (RequestError("no", "model", HTTPStatus.NOT_FOUND), "NotFoundError", StatusCode.UNSET),
        (AdmissionError(Reason.QUEUE_FULL, "full", 1), "TooManyRequestsError", StatusCode.UNSET),
        (AdmissionError(Reason.DRAINING, "later", 1), "ServiceUnavailableError", StatusCode.ERROR),
        (CancelledError(), "CancelledError", StatusCode.UNSET),
        (EngineDeadError(), "EngineDeadError", StatusCode.ERROR),
    ],
)
def test_an_error_has_its_name(
    span: RequestSpan, ended: InMemorySpanExporter, error: BaseException, name: str, status: StatusCode
) -> None:
    span.fail(error)
    span.end()
    found = only(ended)
    assert found.attributes is not None
    assert found.attributes["error.type"] == name
    assert found.status.status_code is status


def test_a_stream_that_ends_with_an_error_tells_it(span: RequestSpan, ended: InMemorySpanExporter) -> None:
    event = span.watch(CHAT).error_event("too late", HTTPStatus.GATEWAY_TIMEOUT)
    assert event == CHAT.error_event("too late", HTTPStatus.GATEWAY_TIMEOUT)
    span.end()
    span.end()  # harmless
    found = only(ended)
    assert found.attributes is not None
    assert found.attributes["error.type"] == "GatewayTimeoutError"
    assert found.status.status_code is StatusCode.ERROR


def test_what_comes_after_it_is_its_child(raw_request: Request, ended: InMemorySpanExporter) -> None:
    """Also where somebody has looked at the headers before."""
    headers = raw_request.headers
    RequestSpan(raw_request, FusionCompletionRequest(model="giant", prompt="Hello")).end()
    found = only(ended)
    assert found.parent is not None
    assert f"{found.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert found.context is not None
    assert headers["traceparent"].split("-")[2] == f"{found.context.span_id:016x}"
