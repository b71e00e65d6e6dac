"""A request as one span of OpenTelemetry, in the words of its conventions for generative AI.

vLLM 0.32 makes a span of each sequence, with the latencies inside the engine, but under names of before version 1.27
of the conventions, and without the model. This one has the names that collectors know, and what fusion adds; the spans
of the queue and of the engine are its children. Neither prompts nor answers are in it.

The names: https://github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-spans.md. The package
`opentelemetry-semantic-conventions` 0.66b2 still lists them, and calls them moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Request
from opentelemetry import trace
from opentelemetry.propagate import extract, inject
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders

from server.admission import AdmissionError
from server.api.errors import RequestError, admission_status, error_type
from server.api.middleware import client_of
from server.api.middleware.log import HEADER as ID_HEADER
from server.api.requests import FusionCompletionRequest
from server.api.stream import Protocol
from server.engine.place import Seat
from server.engine.settings import FusionSettings

PROVIDER = "logit_fusion"
# The conventions' names, by the fields of the API's protocols.
REQUEST_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
    "stream": "stream",
}

# Does nothing unless a tracer provider is set, as vLLM does for `engine.otlp_traces_endpoint`.
_tracer = trace.get_tracer("logit_fusion.api")


class RequestSpan:
    """The span of one request, from its coming in until nothing runs for it any more. `end` it."""

    def __init__(self, raw_request: Request, request: BaseModel) -> None:
        self._operation = "text_completion" if isinstance(request, FusionCompletionRequest) else "chat"
        headers = raw_request.headers
        self._span = _tracer.start_span(self._operation, extract(headers), SpanKind.SERVER)
        self._prompt = self._generated = 0
        self._reasons: list[str] = []
        self._steering: Sequence[str] = ()
        if not self._span.is_recording():
            return
        # In place: the queue and vLLM's serving classes read the parent of their spans from `raw_request.headers`,
        # which looks into this list.
        inject(MutableHeaders(raw=raw_request.scope["headers"]), trace.set_span_in_context(self._span))
        self._span.set_attributes(
            {
                "gen_ai.operation.name": self._operation,
                "gen_ai.provider.name": PROVIDER,
                "fusion.client": client_of(raw_request).name,
                "fusion.request_id": headers.get(ID_HEADER, ""),
                **_asked(request),
            }
        )

    def settled(self, preset: str, arm: str, settings: FusionSettings, steering: Sequence[str]) -> None:
        """Its preset, the one that answers for it, and its settings are known.

        `steering` are the experts, which a router may fill in later.
        """
        self._steering = steering
        if not self._span.is_recording():
            return
        self._span.update_name(f"{self._operation} {preset}")
        self._span.set_attributes(
            {
                "gen_ai.request.model": preset,
                "gen_ai.response.model": arm,
                "fusion.weighting": str(settings.weighting),
                "fusion.routed": settings.route is not None,
                "fusion.speculates": settings.drafter is not None,
            }
        )
        if settings.alpha:
            self._span.set_attribute("fusion.alpha", settings.alpha)

    def add(self, seat: Seat) -> None:
        """One of its sequences is over."""
        self._prompt += seat.prompt
        self._generated += seat.generated or 0
        if seat.finish_reason is not None:
            self._reasons.append(seat.finish_reason)

    def watch(self, protocol: Protocol) -> Protocol:
        """The protocol of its stream; an error that ends it is told here too."""

        def error_event(message: str, status: HTTPStatus) -> str:
            self.refuse(status)
            return protocol.error_event(message, status)

        return protocol._replace(error_event=error_event)

    def refuse(self, status: HTTPStatus) -> None:
        """It is answered by an error. As for HTTP, one of the client's is no failure of the server."""
        self._span.set_attribute("error.type", error_type(status))
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._span.set_status(StatusCode.ERROR)

    def fail(self, error: BaseException) -> None:
        """An error ends it; or it is cancelled, as its client has gone, which is no failure of the server either."""
        if isinstance(error, RequestError):
            self.refuse(error.status)
        elif isinstance(error, AdmissionError):
            self.refuse(admission_status(error))
        else:
            self._span.set_attribute("error.type", type(error).__qualname__)
            if isinstance(error, Exception):
                self._span.set_status(StatusCode.ERROR)

    def end(self) -> None:
        """Nothing runs for it any more."""
        if not self._span.is_recording():
            return
        self._span.set_attributes(
            {
                "gen_ai.usage.input_tokens": self._prompt,
                "gen_ai.usage.output_tokens": self._generated,
                "gen_ai.response.finish_reasons": self._reasons,
                "fusion.experts": list(self._steering),
            }
        )
        self._span.end()


def _asked(request: BaseModel) -> dict[str, Any]:
    """What the request says of itself, by the conventions' names."""
    given = [(name, getattr(request, field, None)) for field, name in REQUEST_FIELDS.items()]
    found = {f"gen_ai.request.{name}": value for name, value in given if value is not None}
    choices = getattr(request, "n", None)
    if choices is not None and choices != 1:
        found["gen_ai.request.choice.count"] = choices
    return found
