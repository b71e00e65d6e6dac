"""OpenTelemetry: a request's span arrives at a real OTLP receiver, under the trace that the client began."""

from __future__ import annotations

import time

import httpx
import pytest

from tests.e2e.conftest import Configured

SECONDS = 30.0
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"


@pytest.mark.parametrize("stream", [False, True])
def test_a_requests_span_has_the_clients_parent(configured: Configured, stream: bool) -> None:
    trace_id = TRACE_ID[:-1] + str(int(stream))
    body = {
        "model": "giant-red",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 5,
        "stream": stream,
        "ignore_eos": True,
    }
    headers = {"traceparent": f"00-{trace_id}-{PARENT_ID}-01"}
    answer = httpx.post(configured.server.url + "/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200
    deadline = time.monotonic() + SECONDS
    while not any(span.name == "llm_request" for span in configured.collector.of_trace(trace_id)):
        assert time.monotonic() < deadline, f"no span of the request among {len(configured.collector.spans)}"
        time.sleep(0.1)
    (span,) = [span for span in configured.collector.of_trace(trace_id) if span.name == "llm_request"]
    assert span.parent_span_id.hex() == PARENT_ID
    attributes = {attribute.key: attribute.value for attribute in span.attributes}
    assert attributes["gen_ai.usage.completion_tokens"].int_value == 5
    assert attributes["gen_ai.latency.time_to_first_token"].double_value > 0
    assert span.end_time_unix_nano > span.start_time_unix_nano
    (wait,) = [span for span in configured.collector.of_trace(trace_id) if span.name == "fusion.admission"]
    assert wait.parent_span_id.hex() == PARENT_ID
    assert {attribute.key for attribute in wait.attributes} == {"fusion.client", "fusion.tokens"}
