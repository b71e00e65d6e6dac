"""The routes beside generation, and the schema that clients generate code from."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.e2e.traffic import held, wait_for
from tests.server_process import ServerProcess

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me something."}]
LONG: list[Any] = [{"role": "user", "content": "word " * 2000}]


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
    for name in ("ChatCompletionRequest", "CompletionRequest", "ResponsesRequest", "MessagesRequest", "BatchRequest"):
        assert "fusion" in schemas["Fusion" + name]["properties"], name
    assert set(schemas["FusionField"]["properties"]) == {
        "experts",
        "weighting",
        "alpha",
        "alpha_max",
        "trace",
        "parts",
        "prompts",
        "speculate",
    }
    assert get(server, "/docs").status_code == 200


def test_one_model_by_its_name(server: ServerProcess, client: OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    for name, model in listed.items():
        found = client.models.retrieve(name)
        assert found.model_dump(exclude={"created", "permission"}) == model.model_dump(
            exclude={"created", "permission"}
        )
    for name, words in (("gaint-red", "did you mean 'giant-red'"), ("a/b", "valid names: giant")):
        answer = get(server, f"/v1/models/{name}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")
        assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_misspelt_field_is_told(client: OpenAI, stream: bool) -> None:
    body: dict[str, Any] = {"model": "giant-red", "messages": MESSAGES, "max_tokens": 1, "stream": stream}
    answer = client.chat.completions.with_raw_response.create(**body, extra_body={"temprature": 0})
    assert "'temprature' is ignored; did you mean 'temperature'?" in answer.headers["warning"]
    assert "warning" not in client.chat.completions.with_raw_response.create(**body, temperature=0).headers


def test_cached_tokens_are_told(client: OpenAI) -> None:
    prompt = "A beginning that two requests share. " * 6
    body: dict[str, Any] = {"model": "giant-blue", "max_tokens": 1}
    text, again = (client.completions.create(prompt=prompt, **body) for _ in range(2))
    chat = client.chat.completions.create(messages=[{"role": "user", "content": prompt}], **body)
    chunks = list(
        client.chat.completions.create(
            messages=[{"role": "user", "content": prompt}], **body, stream=True, stream_options={"include_usage": True}
        )
    )
    response = client.responses.create(model="giant-blue", input=prompt, max_output_tokens=1)
    cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in (text, again, chat, chunks[-1])]
    assert cached[1]
    assert cached[3]
    assert cached[0] is not None
    assert cached[2] is not None
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens


class TestLoad:
    def test_counts_requests(self, server: ServerProcess) -> None:
        assert get(server, "/load").json() == {"server_load": 0}
        with held(server, 2, tokens=200):
            assert get(server, "/load").json() == {"server_load": 2}
        wait_for(lambda: get(server, "/load").json() == {"server_load": 0})

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("path", "prompt"),
        [
            ("/v1/chat/completions", {"messages": MESSAGES}),
            ("/v1/completions", {"prompt": "a"}),
            ("/v1/responses", {"input": "a"}),
            ("/v1/messages", {"messages": MESSAGES}),
        ],
    )
    def test_header(self, server: ServerProcess, path: str, prompt: dict[str, Any], stream: bool) -> None:
        body = {"model": "giant", "max_tokens": 2, "stream": stream, **prompt}
        for asked, begins in (("text", "TEXT named_metrics."), ("JSON", "JSON {"), ("xml", None), (None, None)):
            headers = {"endpoint-load-metrics-format": asked} if asked else {}
            told = httpx.post(server.url + path, json=body, headers=headers).headers.get("endpoint-load-metrics")
            if begins is None:
                assert told is None
                continue
            assert told.startswith(begins)
            assert "num_requests_waiting" in told
            assert "kv_cache_usage_perc" in told


class TestBatch:
    """`/v1/chat/completions/batch`."""

    PATH = "/v1/chat/completions/batch"
    WORDS = ("One.", "Two, three.", "Four, five, six.")

    def body(self, **changes: Any) -> dict[str, Any]:
        conversations = [[{"role": "user", "content": words}] for words in self.WORDS]
        return {"model": "giant-red", "messages": conversations, "max_tokens": 5, "temperature": 0} | changes

    def test_is_its_conversations(self, server: ServerProcess) -> None:
        body = self.body(fusion={"trace": True})
        answer = httpx.post(server.url + self.PATH, json=body, timeout=60).json()
        usage = 0
        for place, conversation in enumerate(body["messages"]):
            one = httpx.post(server.url + "/v1/chat/completions", json=body | {"messages": conversation}).json()
            usage += one["usage"]["total_tokens"]
            choice = answer["choices"][place]
            assert choice["index"] == place
            assert choice["message"]["content"] == one["choices"][0]["message"]["content"]
            assert choice["fusion"]["token_ids"] == one["choices"][0]["fusion"]["token_ids"]
        assert answer["usage"]["total_tokens"] == usage
        assert answer["model"] == "giant-red"

    def test_structured(self, server: ServerProcess) -> None:
        schema = {"enum": ["red", "blue"]}
        wanted = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}}
        answer = httpx.post(server.url + self.PATH, json=self.body(response_format=wanted, max_tokens=40), timeout=60)
        said = [json.loads(choice["message"]["content"]) for choice in answer.json()["choices"]]
        assert len(said) == 3
        assert set(said) <= {"red", "blue"}

    @pytest.mark.parametrize(
        ("changes", "status", "param", "words"),
        [
            ({"stream": True}, 400, "stream", "a batch cannot have it"),
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools", "a batch cannot have it"),
            ({"n": 2}, 400, "n", "set `n` to 1"),
            ({"messages": []}, 400, "messages", "at least 1"),
            ({"messages": [[]]}, 400, "messages.0", "at least 1"),
            ({"messages": MESSAGES}, 400, "messages.0", "list"),
            ({"messages": [MESSAGES] * 257}, 400, "messages", "at most 256 conversations"),
            (
                {"messages": [MESSAGES, [{"role": "user", "content": "word " * 2000}]]},
                400,
                "messages",
                "context length",
            ),
            ({"model": "gaint"}, 404, "model", "did you mean 'giant'"),
            ({"top_logprobs": 2}, 400, "top_logprobs", "logprobs"),
            ({"min_tokens": "x"}, 400, "min_tokens", "integer"),
            ({"use_beam_search": True}, 400, "use_beam_search", "beam search"),
            ({"fusion": {"experts": ["rad"]}}, 404, "fusion.experts", "did you mean 'red'"),
        ],
    )
    def test_wrong(self, server: ServerProcess, changes: dict[str, Any], status: int, param: str, words: str) -> None:
        answer = httpx.post(server.url + self.PATH, json=self.body(**changes), timeout=60)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (status, param), error
        assert words in error["message"]
