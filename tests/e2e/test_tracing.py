"""OpenTelemetry: a request's span arrives at a real OTLP receiver, under the trace that the client began."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc  # type: ignore[import-untyped]
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.server_process import ServerProcess

SECONDS = 30.0
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span that is exported to it."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 (the service's own name)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def of_trace(self, trace_id: str) -> list[Any]:
        return [span for span in self.spans if span.trace_id.hex() == trace_id]


class Traced(NamedTuple):
    server: ServerProcess
    receiver: Receiver


@pytest.fixture(scope="module")
def traced(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    receiver = Receiver()
    collector = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, collector)  # type: ignore[no-untyped-call]
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    endpoint = f"engine.otlp_traces_endpoint=http://127.0.0.1:{port}"
    with ServerProcess(family, tmp_path_factory.mktemp("traced") / "log", "--set", endpoint) as server:
        yield Traced(server, receiver)
    collector.stop(None)


@pytest.mark.parametrize("stream", [False, True])
def test_a_requests_span_has_the_clients_parent(traced: Traced, stream: bool) -> None:
    trace_id = TRACE_ID[:-1] + str(int(stream))
    body = {
        "model": "giant-red",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 5,
        "stream": stream,
        "ignore_eos": True,
    }
    headers = {"traceparent": f"00-{trace_id}-{PARENT_ID}-01"}
    answer = httpx.post(traced.server.url + "/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200
    deadline = time.monotonic() + SECONDS
    while not any(span.name == "llm_request" for span in traced.receiver.of_trace(trace_id)):
        assert time.monotonic() < deadline, f"no span of the request among {len(traced.receiver.spans)}"
        time.sleep(0.1)
    (span,) = [span for span in traced.receiver.of_trace(trace_id) if span.name == "llm_request"]
    assert span.parent_span_id.hex() == PARENT_ID
    attributes = {attribute.key: attribute.value for attribute in span.attributes}
    assert attributes["gen_ai.usage.completion_tokens"].int_value == 5
    assert attributes["gen_ai.latency.time_to_first_token"].double_value > 0
    assert span.end_time_unix_nano > span.start_time_unix_nano
    (wait,) = [span for span in traced.receiver.of_trace(trace_id) if span.name == "fusion.admission"]
    assert wait.parent_span_id.hex() == PARENT_ID
    assert {attribute.key for attribute in wait.attributes} == {"fusion.client", "fusion.tokens"}


def test_the_server_ends_cleanly(traced: Traced) -> None:
    assert traced.server.stop() == 0
