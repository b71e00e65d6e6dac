"""The routes beside generation, and the schema that clients generate code from."""

from __future__ import annotations

import httpx

from tests.server_process import ServerProcess


def get(server: ServerProcess, path: str) -> httpx.Response:
    return httpx.get(server.url + path)


def test_health_and_version(server: ServerProcess) -> None:
    assert get(server, "/health").status_code == 200
    assert set(get(server, "/version").json()) == {"version", "vllm"}


def test_members_and_their_sizes(server: ServerProcess) -> None:
    answer = get(server, "/v1/fusion/experts").json()
    assert [member["name"] for member in answer["members"]] == ["large", "base", "red", "blue"]
    assert all(member["parameters"] > 0 for member in answer["members"])
    assert answer["sampling_defaults"] == {}


def test_tokenize_and_detokenize_are_inverse(server: ServerProcess) -> None:
    text = "Hello, größer 世界"
    tokens = httpx.post(server.url + "/tokenize", json={"model": "giant-red", "prompt": text}).json()["tokens"]
    back = httpx.post(server.url + "/detokenize", json={"model": "giant-red", "tokens": tokens}).json()
    assert back["prompt"] == text


def test_metrics_count_what_was_generated(server: ServerProcess) -> None:
    def generated() -> float:
        lines = get(server, "/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_total{"))

    before = generated()
    httpx.post(server.url + "/v1/completions", json={"model": "giant-red", "prompt": "a", "max_tokens": 5})
    assert generated() >= before + 5


def test_the_fusion_field_is_in_the_schema(server: ServerProcess) -> None:
    schemas = get(server, "/openapi.json").json()["components"]["schemas"]
    for name in ("FusionChatCompletionRequest", "FusionCompletionRequest", "FusionResponsesRequest"):
        assert "fusion" in schemas[name]["properties"], name
    assert set(schemas["FusionField"]["properties"]) == {"experts", "weighting", "alpha", "alpha_max", "trace"}
    assert get(server, "/docs").status_code == 200
