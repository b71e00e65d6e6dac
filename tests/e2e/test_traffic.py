"""Keys, limits and the queue, over HTTP: a server with room for two requests and a short queue."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from openai import AsyncOpenAI, OpenAI

from server.api.split import draw
from tests.e2e.conftest import ROLLOUT, SPLIT
from tests.e2e.traffic import Stream, body, held, metric, standstill, wait_for
from tests.server_process import ServerProcess

SECRET = "a prompt that nobody else may read"


def entry(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(f"key-{name}".encode()).hexdigest(), **options}


def header(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-{name}"}


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    entries = [
        entry("red", presets=["giant-red"]),
        entry("blue"),
        entry("green"),
        entry("rare", requests_per_minute=2),
        entry("short", tokens_per_minute=100),
        entry("reader", requests_per_minute=2),
        entry("brief", tokens_per_minute=500),
        entry("operator", admin=True),
        entry("metered"),
    ]
    path.write_text(yaml.safe_dump({"keys": entries}))
    return path


@pytest.fixture(scope="module")
def busy(family: Path, keys_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {
        "engine.max_model_len": 2048,
        "admission.max_running": 2,
        "admission.max_queued": 2,
        "admission.queue_timeout_s": 2,
        "limits.request_timeout_s": 5,
        "limits.keep_alive_s": 1,
        "limits.read_timeout_s": 2,
        "limits.max_body_bytes": 20_000,
        "limits.max_tokens": 2000,
        "limits.max_n": 4,
        "limits.max_prompts": 3,
        "limits.stored_responses": 5,
        "auth.keys_file": keys_file,
        "presets.ab": json.dumps(ROLLOUT["ab"]),
    }
    arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    log = tmp_path_factory.mktemp("busy") / "log"
    with ServerProcess(family, log, *arguments, "--log-level", "info", "--log-format", "json") as server:
        yield server


def post(server: ServerProcess, key: str = "blue", **changes: Any) -> httpx.Response:
    return httpx.post(server.url + "/v1/completions", json=body(3, **changes), headers=header(key), timeout=60)


def error(response: httpx.Response) -> str:
    message: str = response.json()["error"]["message"]
    return message


class TestKeys:
    @pytest.mark.parametrize("key", ["blue", "green"])
    def test_a_split_sends_a_key_one_way(self, busy: ServerProcess, key: str) -> None:
        """Whatever user a request names. The usage is the arm's."""
        arm = draw("ab", SPLIT, f"key {key}")
        answers = [post(busy, key, model="ab", user=str(user)).json() for user in range(3)]
        assert [(answer["model"], answer["fusion_arm"]) for answer in answers] == [("ab", arm)] * 3
        used = httpx.get(busy.url + "/v1/fusion/usage", headers=header("operator")).json()["clients"][key]["presets"]
        assert used[arm]["requests"] >= 3
        assert "ab" not in used

    def test_the_sdk_with_a_key(self, busy: ServerProcess) -> None:
        client = OpenAI(base_url=busy.url + "/v1", api_key="key-blue", max_retries=0)
        assert client.completions.create(model="giant", prompt="a", max_tokens=2).choices[0].text

    @pytest.mark.parametrize("key", ["none", "wrong", "key-blu", "key-blue2"])
    def test_strangers(self, busy: ServerProcess, key: str) -> None:
        client = OpenAI(base_url=busy.url + "/v1", api_key=key, max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="this API key is not known"):
            client.models.list()

    def test_without_a_key(self, busy: ServerProcess) -> None:
        for path in ("/v1/models", "/v1/fusion/experts", "/tokenize", "/nothing"):
            response = httpx.get(busy.url + path)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert error(response).startswith("Authorization: an API key is needed, sent as 'Bearer KEY'")
        for path in ("/health", "/ready", "/load", "/metrics", "/version", "/docs", "/openapi.json"):
            assert httpx.get(busy.url + path).status_code == 200

    def test_presets_of_a_key(self, busy: ServerProcess) -> None:
        assert post(busy, "red", model="giant-red").status_code == 200
        response = post(busy, "red", model="giant-blue")
        assert response.status_code == 403
        assert error(response) == "model: your key does not allow preset 'giant-blue'; it allows: giant-red"

    def test_presets_of_a_key_are_its_experts_too(self, busy: ServerProcess) -> None:
        for fusion, param in (({"experts": ["blue"]}, "experts"), ({"weighting": "none"}, "weighting")):
            response = post(busy, "red", model="giant-red", fusion=fusion)
            assert (response.status_code, response.json()["error"]["param"]) == (403, f"fusion.{param}")
            assert post(busy, "blue", model="giant-red", fusion=fusion).status_code == 200
        assert post(busy, "red", model="giant-red", fusion={"experts": ["red"], "trace": True}).status_code == 200
        assert post(busy, "red", model="").json()["model"] == "giant-red"

    def test_a_key_sees_what_it_may_use(self, busy: ServerProcess) -> None:
        def seen(key: str) -> tuple[list[str], list[str], list[str], list[str]]:
            models = httpx.get(busy.url + "/v1/models", headers=header(key)).json()["data"]
            shown = httpx.get(busy.url + "/v1/fusion/experts", headers=header(key)).json()
            members = [member["name"] for member in shown["members"]]
            return (
                [model["id"] for model in models],
                members,
                list(shown["presets"]),
                [row["name"] for row in shown["weightings"]],
            )

        assert seen("red") == (["giant-red"], ["large", "base", "red"], ["giant-red"], ["kl"])
        models, members, presets, weightings = seen("blue")
        assert models == presets
        assert {"giant", "giant-red", "giant-blue"} <= set(models)
        assert members == ["large", "base", "red", "blue"]
        assert len(weightings) == 6

    def test_the_prefix_cache_tells_a_key_nothing_of_anothers(self, busy: ServerProcess) -> None:
        secret = [(7 * place) % 200 + 20 for place in range(800)]

        def hits(key: str, **changes: Any) -> float:
            before = metric(busy.url, "vllm:prefix_cache_hits_total")
            assert post(busy, key, prompt=secret, **changes).status_code == 200
            return metric(busy.url, "vllm:prefix_cache_hits_total") - before

        assert hits("blue") == 0
        assert hits("blue") > 0
        assert hits("green") == 0
        assert hits("green", cache_salt="guess") == 0
        assert hits("green", cache_salt="guess") > 0

    def test_usage_of_a_key(self, busy: ServerProcess) -> None:
        refused = httpx.get(busy.url + "/v1/fusion/usage", headers=header("metered"))
        assert refused.status_code == 403
        assert "admin: true" in error(refused)
        used: dict[str, dict[str, int]] = {}
        for model, changes in (
            ("giant", {"prompt": [5] * 7, "n": 3}),
            ("giant-red", {"prompt": [[5] * 4, [6] * 9]}),
            ("giant-red", {"prompt": [5] * 3, "fusion": {"experts": ["red", "blue"]}}),
        ):
            answer = post(busy, "metered", model=model, **changes).json()
            of = used.setdefault(model, {"requests": 0, "prompt_tokens": 0, "generated_tokens": 0})
            of["requests"] += 1
            of["prompt_tokens"] += answer["usage"]["prompt_tokens"]
            of["generated_tokens"] += answer["usage"]["completion_tokens"]
        shown = httpx.get(busy.url + "/v1/fusion/usage", headers=header("operator")).json()["clients"]["metered"]
        assert shown["presets"] == used
        assert shown["requests"] == 3
        assert shown["prompt_tokens"] == 7 + 13 + 3
        both = answer["usage"]["completion_tokens"]
        assert shown["experts"] == {"red": used["giant-red"]["generated_tokens"], "blue": both}
        of_metrics = {
            kind: metric(busy.url, "fusion_client_tokens_total", client="metered", preset="giant-red", kind=kind)
            for kind in ("prompt", "generated")
        }
        assert of_metrics == {kind: used["giant-red"][f"{kind}_tokens"] for kind in ("prompt", "generated")}
        assert metric(busy.url, "fusion_client_expert_tokens_total", client="metered", expert="blue") == both

    def test_requests_per_minute(self, busy: ServerProcess) -> None:
        assert [post(busy, "rare").status_code for _ in range(3)] == [200, 200, 429]
        client = OpenAI(base_url=busy.url + "/v1", api_key="key-rare", max_retries=0)
        with pytest.raises(openai.RateLimitError, match="limit of 2 requests a minute") as caught:
            client.completions.create(model="giant", prompt="a")
        headers = caught.value.response.headers
        assert 1 <= int(headers["retry-after"]) <= 30
        assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("2", "0")
        assert headers["x-ratelimit-reset-requests"].endswith("s")

    def test_reading_counts_as_well(self, busy: ServerProcess) -> None:
        paths = {"/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [3]}}
        found = [
            httpx.post(busy.url + path, json=body, headers=header("reader")).status_code
            for path, body in [*paths.items(), *paths.items()]
        ]
        assert found == [200, 200, 429, 429]

    def test_tokens_per_minute_count_what_was_used(self, busy: ServerProcess) -> None:
        # The eos token ends nothing here, but a stop string does.
        assert post(busy, "short", max_tokens=90, stop=list("etaoinshrdlu ")[:4], seed=1).status_code == 200
        response = post(busy, "short", max_tokens=20)
        assert response.status_code == 200
        assert response.headers["x-ratelimit-limit-tokens"] == "100"
        assert int(response.headers["x-ratelimit-remaining-tokens"]) < 90
        assert "x-ratelimit-limit-tokens" not in post(busy).headers
        response = post(busy, "short", max_tokens=200)
        assert response.status_code == 429
        assert "may need 201 tokens; your key allows 100 a minute" in error(response)
        assert "retry-after" not in response.headers

    def test_a_new_key_works_without_restart(self, busy: ServerProcess, keys_file: Path) -> None:
        entries = yaml.safe_load(keys_file.read_text())["keys"]
        assert post(busy, "new").status_code == 401
        keys_file.write_text(yaml.safe_dump({"keys": [*entries, entry("new")]}))
        wait_for(lambda: post(busy, "new").status_code == 200)


class TestLimits:
    @pytest.mark.parametrize(
        ("changes", "param", "message"),
        [
            ({"max_tokens": 2001}, "max_tokens", "max_tokens: at most 2000 is allowed here, not 2001"),
            ({"n": 5}, "n", "n: at most 4 is allowed here, not 5"),
            ({"prompt": ["a"] * 4}, "prompt", "at most 3 prompts are allowed in one request, not 4"),
            ({"prompt": [[1]] * 4}, "prompt", "at most 3 prompts are allowed in one request, not 4"),
        ],
    )
    def test_fields(self, busy: ServerProcess, changes: dict[str, Any], param: str, message: str) -> None:
        response = post(busy, **changes)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
        assert message in error(response)

    def test_a_prompt_of_ids_is_one_prompt(self, busy: ServerProcess) -> None:
        assert post(busy, prompt=[1, 2, 3, 4, 5]).status_code == 200

    def test_output_of_the_other_apis(self, busy: ServerProcess) -> None:
        client = OpenAI(base_url=busy.url + "/v1", api_key="key-blue", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="max_completion_tokens: at most 2000"):
            client.chat.completions.create(
                model="giant", messages=[{"role": "user", "content": "a"}], max_completion_tokens=3000
            )
        with pytest.raises(openai.BadRequestError, match="max_output_tokens: at most 2000"):
            client.responses.create(model="giant", input="a", max_output_tokens=3000)

    def test_large_body(self, busy: ServerProcess) -> None:
        response = post(busy, prompt="a" * 30_000)
        assert response.status_code == 413
        assert error(response) == "body: it is larger than 20,000 bytes"

        def chunks() -> Iterator[bytes]:
            yield b'{"prompt": "'
            for _ in range(30):
                yield b"a" * 1000

        response = httpx.post(busy.url + "/v1/completions", content=chunks(), headers=header("blue"))
        assert response.status_code == 413

    def test_deep_body(self, busy: ServerProcess) -> None:
        for content in (b"[" * 10_000, b'{"a":' * 3000 + b"1" + b"}" * 3000):
            response = httpx.post(
                busy.url + "/v1/completions",
                content=content,
                headers=header("blue") | {"Content-Type": "application/json"},
            )
            assert response.status_code == 400
            assert error(response) == "body: its JSON is nested deeper than 64 levels"

    def test_slow_body(self, busy: ServerProcess) -> None:
        port = httpx.URL(busy.url).port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port)) as sock:
            lines = [
                "POST /v1/completions HTTP/1.1",
                "Host: a",
                "Authorization: Bearer key-blue",
                "Content-Length: 999",
            ]
            sock.sendall("\r\n".join([*lines, "", "{"]).encode())
            answer = sock.makefile("rb").readline()
            assert answer.startswith(b"HTTP/1.1 408")
            started = time.monotonic()
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - started < 10:
                    sock.sendall(b" ")
                    time.sleep(0.1)
            assert time.monotonic() - started < 5, "what comes after the answer has no end"

    def test_a_request_that_takes_too_long(self, busy: ServerProcess) -> None:
        options: dict[str, Any] = {"n": 4, "max_tokens": 2000, "prompt": ["a", "b", "c"], "logprobs": 5}
        response = post(busy, **options)
        assert response.status_code == 504
        assert error(response) == "the request took longer than the 5 s that it may take"
        stream = Stream(busy, 2000, header("blue"), **options)
        stream.join(60)
        assert stream.status == 200
        assert stream.error is not None
        assert "took longer than the 5 s" in stream.error["message"]
        assert stream.events[-1] == "[DONE]"
        wait_for(lambda: metric(busy.url, "vllm:num_requests_running") == 0, 1.0)


class TestQueue:
    def test_full_queue_is_refused_at_once(self, busy: ServerProcess) -> None:
        with held(busy, 2, headers=header("blue")):
            waiting = [Stream(busy, 3, header("blue")) for _ in range(2)]
            wait_for(lambda: metric(busy.url, "fusion_admission_queue_depth") == 2)
            started = time.monotonic()
            response = post(busy)
            assert time.monotonic() - started < 1.0
            assert response.status_code == 429
            assert "2 requests are waiting already" in error(response)
            assert int(response.headers["retry-after"]) >= 1
        for stream in waiting:
            stream.join(30)
        assert metric(busy.url, 'fusion_admission_rejected_total{reason="queue_full"}') >= 1

    def test_patience_ends(self, busy: ServerProcess) -> None:
        with held(busy, 2, headers=header("blue")):
            response = post(busy)
        assert response.status_code == 429
        assert "no place became free within 2 s" in error(response)

    def test_a_stream_that_is_refused_has_a_status(self, busy: ServerProcess) -> None:
        with held(busy, 2, headers=header("blue")):
            queued = [Stream(busy, 3, header("blue")) for _ in range(2)]
            wait_for(lambda: metric(busy.url, "fusion_admission_queue_depth") == 2)
            refused = Stream(busy, 3, header("blue"))
            refused.join(30)
            assert refused.status == 429
            for stream in queued:
                stream.close()

    def test_clients_that_go_free_their_places(self, busy: ServerProcess) -> None:
        with held(busy, 2, headers=header("blue")):
            queued = threading.Thread(target=lambda: self._give_up(busy))
            queued.start()
            wait_for(lambda: metric(busy.url, "fusion_admission_queue_depth") == 1)
            queued.join()
            wait_for(lambda: metric(busy.url, "fusion_admission_queue_depth") == 0, 1.0)
        wait_for(lambda: metric(busy.url, "vllm:num_requests_running") == 0, 1.0)
        wait_for(lambda: metric(busy.url, "fusion_admission_running") == 0, 1.0)
        assert metric(busy.url, "fusion_admission_running_tokens") == 0

    @staticmethod
    def _give_up(server: ServerProcess) -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + "/v1/completions", json=body(3), headers=header("blue"), timeout=0.5)

    def test_another_key_is_not_pushed_aside(self, busy: ServerProcess) -> None:
        with held(busy, 2, headers=header("blue")):
            flood = [Stream(busy, 3, header("blue")) for _ in range(2)]
            wait_for(lambda: metric(busy.url, "fusion_admission_queue_depth") == 2)
            quiet = Stream(busy, 3, header("green"))
            wait_for(lambda: any(stream.status == 429 for stream in flood))
            assert quiet.status in (0, 200)
            for stream in (*flood, quiet):
                stream.close()

    def test_a_request_of_many_sequences_leaves_room(self, busy: ServerProcess) -> None:
        with standstill(busy):
            wide = Stream(busy, 20, header("blue"), n=4, prompt=["a", "b", "c"])
            wait_for(lambda: metric(busy.url, "fusion_admission_running") == 1)
            narrow = [Stream(busy, 3, header("blue")) for _ in range(2)]
            wait_for(lambda: metric(busy.url, "fusion_admission_running") == 2)
            wait_for(lambda: metric(busy.url, "fusion_admission_queue_depth") == 1)
        for stream in (wide, *narrow):
            stream.join(30)
            assert stream.error is None
            assert stream.events[-1] == "[DONE]"
        assert max(stream.ended for stream in narrow) < wide.ended
        wait_for(lambda: metric(busy.url, "fusion_admission_running") == 0, 1.0)

    def test_its_sequences_come_out_as_if_they_had_run_at_once(self, busy: ServerProcess) -> None:
        client = OpenAI(base_url=busy.url + "/v1", api_key="key-blue", max_retries=0)
        options: Any = {"model": "giant-all", "max_tokens": 6, "seed": 7, "extra_body": {"ignore_eos": True}}
        wide = client.completions.create(prompt=["a", "b"], n=4, **options)
        assert [choice.index for choice in wide.choices] == list(range(8))
        for place, choice in enumerate(wide.choices):
            options["seed"] = 7 + place % 4
            alone = client.completions.create(prompt="ab"[place // 4], **options)
            assert choice.text == alone.choices[0].text
        assert wide.usage is not None
        assert wide.usage.completion_tokens == 48

    def test_a_stream_is_never_silent(self, busy: ServerProcess) -> None:
        """It waits for a place, and is told so; the place does not come, and it is told that too."""
        with (
            held(busy, 2, headers=header("blue")),
            httpx.stream(
                "POST", busy.url + "/v1/completions", json=body(3, stream=True), headers=header("blue"), timeout=30
            ) as response,
        ):
            assert response.status_code == 200
            lines = [line for line in response.iter_lines() if line]
        assert lines[0] == ": keep-alive"
        refused = json.loads(lines[-2].removeprefix("data: "))["error"]
        assert refused["type"] == "TooManyRequestsError"
        assert "no place became free within 2 s" in refused["message"]
        assert lines[-1] == "data: [DONE]"

    async def test_many_clients_each_get_all_their_tokens(self, busy: ServerProcess) -> None:
        """Twenty SDK clients that try again when told to, on a server for two."""
        client = AsyncOpenAI(base_url=busy.url + "/v1", api_key="key-blue", max_retries=30)

        async def ask(seed: int) -> int:
            answer = await client.completions.create(
                model="giant-all", prompt="a", max_tokens=20, seed=seed, extra_body={"ignore_eos": True}
            )
            assert answer.usage is not None
            return answer.usage.completion_tokens

        assert await asyncio.gather(*(ask(seed) for seed in range(20))) == [20] * 20


class TestStoredResponses:
    """A key's answers of `/v1/responses` are its own and few, and their places are free when they end."""

    @staticmethod
    def client(busy: ServerProcess, key: str) -> OpenAI:
        return OpenAI(base_url=busy.url + "/v1", api_key=f"key-{key}", max_retries=0)

    @staticmethod
    def ask(client: OpenAI, tokens: int = 2, **options: Any) -> Any:
        extra = {"ignore_eos": True, **options.pop("extra_body", {})}
        return client.responses.create(model="giant", input="a", max_output_tokens=tokens, extra_body=extra, **options)

    def test_one_key_never_sees_anothers(self, busy: ServerProcess) -> None:
        blue, green = self.client(busy, "blue"), self.client(busy, "green")
        own = {"request_id": "chosen"}
        for background in (False, True):
            answer = self.ask(blue, background=background, extra_body=own)
            for method in (green.responses.retrieve, green.responses.cancel, green.responses.delete):
                with pytest.raises(openai.NotFoundError, match="there is no response 'chosen'"):
                    method("chosen")
            with pytest.raises(openai.NotFoundError, match="previous_response_id"):
                self.ask(green, previous_response_id="chosen")
            # The same id is another response for another key.
            other = self.ask(green, 4, extra_body=own)
            wait_for(lambda: blue.responses.retrieve("chosen").status == "incomplete", 20)
            assert blue.responses.retrieve("chosen").usage.output_tokens == 2  # type: ignore[union-attr]
            assert green.responses.retrieve("chosen").usage == other.usage
            green.responses.delete("chosen")
            assert blue.responses.retrieve("chosen").id == answer.id
            blue.responses.delete("chosen")

    def test_the_oldest_goes(self, busy: ServerProcess) -> None:
        blue = self.client(busy, "blue")
        kept = self.ask(self.client(busy, "green"))
        ids = [self.ask(blue).id for _ in range(7)]
        for gone in ids[:2]:
            with pytest.raises(openai.NotFoundError):
                blue.responses.retrieve(gone)
        assert [blue.responses.retrieve(found).id for found in ids[2:]] == ids[2:]
        assert self.client(busy, "green").responses.retrieve(kept.id).id == kept.id

    def test_more_in_the_background_than_places(self, busy: ServerProcess) -> None:
        """Two run, two wait, the next is refused; all end, and the server is as before."""
        blue = self.client(busy, "blue")
        with standstill(busy):
            ids = [self.ask(blue, 300, background=True).id for _ in range(4)]
            with pytest.raises(openai.RateLimitError, match="waiting already"):
                self.ask(blue, background=True)
        wait_for(
            lambda: all(blue.responses.retrieve(found).status not in ("queued", "in_progress") for found in ids), 60
        )
        assert metric(busy.url, "fusion_admission_running") == 0
        assert post(busy).status_code == 200

    def test_patience_ends_in_the_background_too(self, busy: ServerProcess) -> None:
        blue = self.client(busy, "blue")
        with held(busy, 2, headers=header("blue")):
            waiting = self.ask(blue, background=True).id
            wait_for(lambda: blue.responses.retrieve(waiting).status not in ("queued", "in_progress"), 20)
        late = blue.responses.retrieve(waiting)
        assert late.status == "failed"
        assert late.error is not None
        assert late.error.code == "rate_limit_exceeded"
        assert "no place became free within 2 s" in late.error.message

    def test_used_tokens_are_what_a_key_pays_for(self, busy: ServerProcess) -> None:
        short = OpenAI(base_url=busy.url + "/v1", api_key="key-brief", max_retries=0)
        for _ in range(4):  # each may need most of a minute's tokens, and uses few
            self.ask(short, 400, extra_body={"ignore_eos": False, "stop": list("etaoinshrdlu ")[:4], "seed": 1})


class TestAnthropicKeys:
    def test_either_header(self, busy: ServerProcess) -> None:
        body = {"model": "giant-red", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
        for headers, status in (
            ({"X-Api-Key": "key-red"}, 200),
            (header("red"), 200),
            ({"X-Api-Key": "wrong"}, 401),
            ({}, 401),
            ({"X-Api-Key": "key-blue", "Authorization": "Bearer wrong"}, 401),
        ):
            answer = httpx.post(busy.url + "/v1/messages", json=body, headers=headers)
            assert answer.status_code == status
            if status == 401:
                assert answer.json()["error"]["type"] == "authentication_error"
        answer = httpx.post(busy.url + "/v1/messages", json=body | {"model": "giant"}, headers={"X-Api-Key": "key-red"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")

    def test_limits(self, busy: ServerProcess) -> None:
        url, headers = busy.url + "/v1/messages", {"X-Api-Key": "key-blue"}
        body = {"model": "giant", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
        answer = httpx.post(url, json=body | {"max_tokens": 2001}, headers=headers)
        assert (answer.status_code, error(answer)) == (400, "max_tokens: at most 2000 is allowed here, not 2001")
        with held(busy, 2, headers=header("blue")):
            waiting = [Stream(busy, 3, header("blue")) for _ in range(2)]
            wait_for(lambda: metric(busy.url, "fusion_admission_queue_depth") == 2)
            for path in ("", "/count_tokens"):
                answer = httpx.post(url + path, json=body, headers=headers)
                assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
                assert int(answer.headers["retry-after"]) >= 1
            for stream in waiting:
                stream.close()


class TestLog:
    def test_request_ids(self, busy: ServerProcess) -> None:
        response = post(busy)
        assert len(response.headers["x-request-id"]) == 32
        given = httpx.post(
            busy.url + "/v1/completions", json=body(2), headers=header("blue") | {"X-Request-Id": "my-id.1"}
        )
        assert given.headers["x-request-id"] == "my-id.1"
        assert given.json()["id"] == "cmpl-my-id.1"
        odd = httpx.get(busy.url + "/health", headers={"X-Request-Id": "a b" * 100})
        assert len(odd.headers["x-request-id"]) == 32

    def test_the_same_id_twice_at_once(self, busy: ServerProcess) -> None:
        headers = header("blue") | {"X-Request-Id": "twice"}
        both = [Stream(busy, 50, headers, seed=seed) for seed in (1, 2)]
        for stream in both:
            stream.join(30)
            assert stream.completion_tokens == 50

    def test_lines_are_json_and_hold_no_secrets(self, busy: ServerProcess) -> None:
        post(busy, prompt=SECRET, n=9)
        post(busy, prompt=SECRET)
        httpx.get(busy.url + "/v1/models", headers={"Authorization": "Bearer wrong-key"})

        def logged() -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in busy.log.read_text().splitlines() if line.startswith("{")]
            return [line for line in lines if line["logger"] == "logit_fusion.requests"][-3:]

        # A line is written when its answer is sent, which the client may know first.
        expected = ["GET /v1/models 401", "POST /v1/completions 200", "POST /v1/completions 400"]
        wait_for(lambda: sorted(line["message"] for line in logged()) == expected)
        for line in logged():
            assert {"time", "level", "message", "request_id", "client", "seconds"} <= line.keys()
            assert (line["client"] == "blue") == ("401" not in line["message"])
        log = busy.log.read_text()
        assert SECRET not in log
        assert "key-blue" not in log
        assert "wrong-key" not in log
