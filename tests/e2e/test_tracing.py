"""OpenTelemetry: a request's spans arrive at a real OTLP receiver, under the trace that the client began."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Configured

SECONDS = 30.0
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e473"
PARENT_ID = "00f067aa0ba902b7"
BODY: dict[str, Any] = {"model": "giant-red", "max_tokens": 5, "ignore_eos": True}
MESSAGES = [{"role": "user", "content": "Hello"}]
SERVER_KIND, STATUS_UNSET = 2, 0


def ask(configured: Configured, path: str, digit: int, **fields: Any) -> httpx.Response:
    headers = {"traceparent": f"00-{TRACE_ID}{digit}-{PARENT_ID}-01", "x-request-id": f"request-{digit}"}
    return httpx.post(configured.server.url + path, json=BODY | fields, headers=headers, timeout=60)


def spans_of(configured: Configured, digit: int, awaited: str) -> dict[str, Any]:
    """The trace's spans by name, once the awaited one is there: a request's own, which ends last."""
    deadline = time.monotonic() + SECONDS
    while True:
        spans = {span.name: span for span in configured.collector.of_trace(f"{TRACE_ID}{digit}")}
        if awaited in spans:
            return spans
        assert time.monotonic() < deadline, f"no span {awaited!r} among {list(spans)}"
        time.sleep(0.1)


def attributes_of(span: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        held = getattr(value, kind)
        return [plain(each) for each in held.values] if kind == "array_value" else held

    return {attribute.key: plain(attribute.value) for attribute in span.attributes}


@pytest.mark.parametrize("stream", [False, True])
def test_a_requests_span_has_the_clients_parent(configured: Configured, stream: bool) -> None:
    digit = int(stream)
    answer = ask(configured, "/v1/chat/completions", digit, messages=MESSAGES, stream=stream, temperature=0.5)
    assert answer.status_code == 200
    spans = spans_of(configured, digit, "chat giant-red")
    assert spans.keys() == {"chat giant-red", "fusion.admission", "llm_request"}
    own, wait, engine = spans["chat giant-red"], spans["fusion.admission"], spans["llm_request"]
    assert own.parent_span_id.hex() == PARENT_ID
    assert own.kind == SERVER_KIND
    assert wait.parent_span_id == engine.parent_span_id == own.span_id
    assert own.start_time_unix_nano < engine.start_time_unix_nano < engine.end_time_unix_nano <= own.end_time_unix_nano
    of_engine = attributes_of(engine)
    assert of_engine["gen_ai.usage.completion_tokens"] == 5
    assert of_engine["gen_ai.latency.time_to_first_token"] > 0
    assert attributes_of(wait).keys() == {"fusion.client", "fusion.tokens"}
    assert attributes_of(own) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "logit_fusion",
        "gen_ai.request.model": "giant-red",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.stream": stream,
        "gen_ai.response.model": "giant-red",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": of_engine["gen_ai.usage.prompt_tokens"],
        "gen_ai.usage.output_tokens": 5,
        "fusion.client": "anybody",
        "fusion.experts": ["red"],
        "fusion.request_id": f"request-{digit}",
        "fusion.routed": False,
        "fusion.speculates": False,
        "fusion.weighting": "kl",
    }


def test_a_span_counts_all_choices_and_what_the_request_changed(configured: Configured) -> None:
    fusion = {"weighting": "static", "experts": ["blue", "red"], "alpha": {"red": -0.5, "blue": 1.0}}
    answer = ask(configured, "/v1/completions", 2, prompt=["Hello", "You"], n=2, seed=3, fusion=fusion)
    usage = answer.json()["usage"]
    own = attributes_of(spans_of(configured, 2, "text_completion giant-red")["text_completion giant-red"])
    assert own["gen_ai.request.choice.count"] == 2
    assert own["gen_ai.request.seed"] == 3
    assert own["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert own["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 20
    assert own["gen_ai.response.finish_reasons"] == ["length"] * 4
    assert own["fusion.weighting"] == "static"
    assert dict(zip(own["fusion.experts"], own["fusion.alpha"], strict=True)) == fusion["alpha"]


@pytest.mark.parametrize(
    ("digit", "fields", "name", "error"),
    [(3, {"model": "gaint"}, "chat", "NotFoundError"), (4, {"max_tokens": 10**6}, "chat giant-red", "BadRequestError")],
)
def test_a_refused_request_has_a_span_too(
    configured: Configured, digit: int, fields: dict[str, Any], name: str, error: str
) -> None:
    assert ask(configured, "/v1/chat/completions", digit, messages=MESSAGES, **fields).status_code in (400, 404)
    span = spans_of(configured, digit, name)[name]
    assert attributes_of(span)["error.type"] == error
    assert span.status.code == STATUS_UNSET, "the client's fault is no failure of the server"
