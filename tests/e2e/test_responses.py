"""Stored and background answers of `/v1/responses`, as the OpenAI SDK uses them."""

from __future__ import annotations

import time
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.e2e.conftest import Configured
from tests.e2e.traffic import metric, standstill, wait_for
from tests.server_process import ServerProcess

RESPONSES = "/v1/responses"
SHORT: dict[str, Any] = {"model": "giant-red", "input": "Hello", "max_output_tokens": 6, "temperature": 0}
LONG: dict[str, Any] = SHORT | {"max_output_tokens": 230}
ON: dict[str, Any] = {"ignore_eos": True}
TRACE: dict[str, Any] = {"fusion": {"trace": True}}


def ended(client: OpenAI, response_id: str) -> Any:
    """The response when it is not being made any more."""
    wait_for(lambda: client.responses.retrieve(response_id).status not in ("queued", "in_progress"), 30)
    return client.responses.retrieve(response_id)


def idle(server: ServerProcess) -> None:
    """Nothing runs, and no place is held."""
    wait_for(lambda: metric(server.url, "fusion_admission_running") == 0, 10)
    assert httpx.get(server.url + "/load").json() == {"server_load": 0}


class TestStored:
    def test_is_read_again(self, client: OpenAI) -> None:
        answer: Any = client.responses.create(**SHORT, extra_body=TRACE)
        assert client.responses.retrieve(answer.id) == answer
        assert answer.fusion["token_ids"]

    def test_of_a_stream_too(self, client: OpenAI) -> None:
        last: Any = list(client.responses.create(**SHORT, stream=True))[-1]
        assert client.responses.retrieve(last.response.id).output_text == last.response.output_text

    def test_a_conversation_goes_on(self, client: OpenAI, server: ServerProcess) -> None:
        first = client.responses.create(**SHORT)
        second = client.responses.create(**SHORT | {"input": "More"}, previous_response_id=first.id)
        third = client.responses.create(**SHORT | {"input": "More"}, previous_response_id=second.id)
        assert third.previous_response_id == second.id
        chat = [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "More"},
            {"role": "assistant", "content": second.output_text},
            {"role": "user", "content": "More"},
        ]
        body = {"model": "giant-red", "messages": chat, "max_tokens": 6, "temperature": 0}
        whole = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60).json()
        assert third.output_text == whole["choices"][0]["message"]["content"]
        assert third.usage is not None
        assert third.usage.input_tokens == whole["usage"]["prompt_tokens"]

    def test_is_deleted(self, client: OpenAI) -> None:
        answer = client.responses.create(**SHORT)
        client.responses.delete(answer.id)
        for gone in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
            with pytest.raises(openai.NotFoundError, match="there is no response"):
                gone(answer.id)
        with pytest.raises(openai.NotFoundError, match="previous_response_id: there is no response"):
            client.responses.create(**SHORT, previous_response_id=answer.id)

    def test_is_not_stored_if_not_wanted(self, client: OpenAI) -> None:
        answer = client.responses.create(**SHORT, store=False)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(answer.id)

    def test_an_id_is_used_once(self, server: ServerProcess) -> None:
        statuses = [
            httpx.post(server.url + RESPONSES, json=SHORT | {"request_id": "mine"}, timeout=60).status_code
            for _ in range(2)
        ]
        assert statuses == [200, 400]
        assert httpx.delete(server.url + RESPONSES + "/mine").json()["deleted"] is True


class TestBackground:
    def test_answers_later(self, client: OpenAI, server: ServerProcess) -> None:
        now = client.responses.create(**SHORT)
        answer = client.responses.create(**SHORT, background=True, extra_body=TRACE)
        assert (answer.status, answer.output) == ("queued", [])
        later = ended(client, answer.id)
        assert (later.output_text, later.usage.total_tokens) == (now.output_text, now.usage.total_tokens)
        assert len(later.fusion["token_ids"]) == later.usage.output_tokens
        idle(server)

    def test_many_at_once_leave_their_places(self, client: OpenAI, server: ServerProcess) -> None:
        ids = [client.responses.create(**SHORT, background=True).id for _ in range(40)]
        assert {ended(client, response_id).status for response_id in ids} == {"incomplete"}
        idle(server)

    def test_a_stream_is_sent_again(self, client: OpenAI, server: ServerProcess) -> None:
        events: list[Any] = list(client.responses.create(**SHORT, background=True, stream=True, extra_body=TRACE))
        assert events[-1].type == "response.completed"
        response_id = events[-1].response.id
        assert list(client.responses.retrieve(response_id, stream=True)) == events
        assert list(client.responses.retrieve(response_id, stream=True, starting_after=3)) == events[4:]
        assert list(client.responses.retrieve(response_id, stream=True, starting_after=10_000)) == []
        traced = [token for event in events for token in (getattr(event, "fusion", None) or {}).get("token_ids", ())]
        assert len(traced) == events[-1].response.usage.output_tokens
        idle(server)

    def test_goes_on_without_its_reader(self, client: OpenAI, server: ServerProcess) -> None:
        with client.responses.create(**LONG, background=True, stream=True, extra_body=ON) as stream:
            response_id = next(iter(stream)).response.id
        again: list[Any] = list(client.responses.retrieve(response_id, stream=True))
        assert again[-1].response.usage.output_tokens == 230
        idle(server)

    @pytest.mark.parametrize("stream", [False, True])
    def test_is_cancelled(self, client: OpenAI, server: ServerProcess, stream: bool) -> None:
        name = f"long-{stream}"
        body = LONG | ON | {"background": True, "stream": stream, "request_id": name}
        faults = server.log.read_text().count("Traceback")
        with standstill(server), httpx.stream("POST", server.url + RESPONSES, json=body, timeout=60) as answer:
            wait_for(lambda: client.responses.retrieve(name).status == "in_progress")
            with pytest.raises(openai.BadRequestError, match="in_progress; wait for its end"):
                client.responses.create(**SHORT, previous_response_id=name)
            assert client.responses.cancel(name).status == "cancelled"
            answer.read()  # a stream ends
        idle(server)
        assert client.responses.retrieve(name).status == "cancelled"
        with pytest.raises(openai.BadRequestError, match="this response is cancelled"):
            client.responses.cancel(name)
        client.responses.delete(name)
        assert server.log.read_text().count("Traceback") == faults

    def test_deleting_stops_it(self, client: OpenAI, server: ServerProcess) -> None:
        answer = client.responses.create(**LONG, background=True, extra_body=ON)
        started = time.monotonic()
        client.responses.delete(answer.id)
        idle(server)
        assert time.monotonic() - started < 5

    @pytest.mark.parametrize(
        ("path", "status", "words"),
        [
            ("/nothing", 404, "there is no response 'nothing'"),
            ("/{id}?stream=true", 400, "stream: only a response that was made with background and stream"),
            ("/{id}?starting_after=-1", 400, "starting_after: Input should be greater than or equal to 0"),
            ("/{id}?starting_after=x", 400, "starting_after"),
            ("/{id}?stream=maybe", 400, "stream"),
        ],
    )
    def test_wrong(self, client: OpenAI, server: ServerProcess, path: str, status: int, words: str) -> None:
        url = server.url + RESPONSES + path.format(id=client.responses.create(**SHORT).id)
        answer = httpx.get(url)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, status)
        assert words in error["message"]

    def test_needs_store(self, client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="store"):
            client.responses.create(**SHORT, background=True, store=False)


def test_a_server_that_keeps_none(configured: Configured) -> None:
    url = configured.server.url + RESPONSES
    answer = httpx.post(url, json=SHORT | {"background": True}, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "background")
    assert "limits.stored_responses is 0" in error["message"]
    assert "VLLM" not in error["message"]
    kept = httpx.post(url, json=SHORT, timeout=60).json()["id"]
    assert httpx.get(f"{url}/{kept}").status_code == 404
    assert httpx.post(url, json=SHORT | {"previous_response_id": kept}, timeout=60).status_code == 404
