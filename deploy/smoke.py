"""Smoke test of a running server: smoke.py URL. Needs Python alone; a key comes from LOGIT_FUSION_API_KEY."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import Any

SECONDS = 120


def call(url: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    """GET `url`, or POST `body` to it as JSON; return the status and the answer's text."""
    headers = {"Content-Type": "application/json"}
    # Several keys may be set, for a server; a client needs one.
    if key := os.environ.get("LOGIT_FUSION_API_KEY", "").split(",")[0]:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def check_preset(url: str, preset: str) -> str:
    """Ask one preset for a few tokens with their trace, and return what to print about it."""
    body = {"model": preset, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    status, text = call(f"{url}/v1/completions", body | {"fusion": {"trace": True}})
    assert status == 200, f"{preset}: {status} {text}"
    answer = json.loads(text)
    choice = answer["choices"][0]
    trace = choice["fusion"]
    generated = answer["usage"]["completion_tokens"]
    assert generated > 0, f"{preset}: nothing was generated: {text}"
    assert len(trace["token_ids"]) == generated, f"{preset}: {generated} tokens, but the trace is {trace}"
    for expert, alpha in trace["alpha"].items():
        assert len(alpha) == generated, f"{preset}: {generated} tokens, but {len(alpha)} weights of {expert}"
    return f"{preset}: {choice['text']!r}, steered by {', '.join(trace['alpha']) or 'nobody'}"


def main(url: str) -> None:
    """Check what a deployment relies on: both health routes, the models, a completion from each, the metrics."""
    for path in ("/health", "/ready"):
        status, text = call(url + path)
        assert status == 200, f"{path}: {status} {text}"
    status, text = call(f"{url}/v1/models")
    if status == 401 and "LOGIT_FUSION_API_KEY" not in os.environ:
        print("healthy; keys are needed to go on, and LOGIT_FUSION_API_KEY is not set")
        return
    assert status == 200, f"/v1/models: {status} {text}"
    presets = [model["id"] for model in json.loads(text)["data"]]
    assert presets, "/v1/models is empty"
    for preset in presets:
        print(check_preset(url, preset))
    status, text = call(f"{url}/metrics")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND):
        print("all well; the metrics have a key or a port of their own")
        return
    assert status == 200, f"/metrics: {status}"
    for metric in ("vllm:num_requests_running", "vllm:generation_tokens_total"):
        assert metric in text, f"/metrics lacks {metric}"
    print("all well")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
