"""Wrong requests get a 4xx in OpenAI's form that names the field, and harm nobody else."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.server_process import ServerProcess

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES = [{"role": "user", "content": "hi"}]
LONG = "word " * 2000


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "giant-red", "messages": MESSAGES, "max_tokens": 2, **fields}


def fusion(**fields: Any) -> dict[str, Any]:
    return chat(fusion=fields)


WRONG: list[tuple[str, dict[str, Any], int, str, str]] = [
    # path, body, status, param, words of the message
    (CHAT, chat(model="gaint-red"), 404, "model", "did you mean 'giant-red'"),
    (TEXT, {"model": "nobody", "prompt": "a"}, 404, "model", "nobody"),
    (RESPONSES, {"model": "nobody", "input": "a"}, 404, "model", "nobody"),
    (CHAT, fusion(experts=["rad"]), 404, "fusion.experts", "did you mean 'red'"),
    (CHAT, fusion(experts=["red", "red"]), 400, "fusion.experts", "twice"),
    (CHAT, fusion(experts=[]), 400, "fusion.experts", "at least one expert"),
    (CHAT, fusion(experts="red"), 400, "fusion.experts", "list"),
    (CHAT, fusion(weighting="none", experts=["red"]), 400, "fusion.experts", "large model only"),
    (CHAT, fusion(weighting="alone", experts=["red", "blue"]), 400, "fusion.experts", "exactly one"),
    (CHAT, fusion(weighting="klgrid"), 400, "fusion.weighting", "'klgrid'"),
    (CHAT, fusion(weighting="static"), 400, "fusion.alpha", "needs a number"),
    (CHAT, fusion(weighting="static", alpha="1.0"), 400, "fusion.alpha", "'1.0'"),
    (CHAT, fusion(weighting="static", alpha=True), 400, "fusion.alpha", "true is not a number"),
    (CHAT, fusion(weighting="static", alpha=1e9), 400, "fusion.alpha", "between"),
    (CHAT, fusion(weighting="static", alpha={"blue": 1}), 400, "fusion.alpha.blue", "none of the experts"),
    (CHAT, fusion(weighting="static", experts=["red", "blue"], alpha={"red": 1}), 400, "fusion.alpha", "'blue'"),
    (CHAT, fusion(weighting="kl", alpha=1.0), 400, "fusion.alpha", "only weighting 'static'"),
    (CHAT, fusion(alpha_max=0), 400, "fusion.alpha_max", "above 0"),
    (CHAT, fusion(wieghting="kl"), 400, "fusion.wieghting", "did you mean 'weighting'"),
    (CHAT, chat(fusion="kl"), 400, "fusion", "'kl'"),
    (CHAT, chat(fusion=["kl"]), 400, "fusion", "kl"),
    (CHAT, chat(messages=[]), 400, "messages", "at least one"),
    (CHAT, {"model": "giant-red"}, 400, "messages", "required"),
    (CHAT, chat(messages=[{"role": "user", "content": LONG}]), 400, "messages", "maximum context length"),
    (TEXT, {"model": "giant-red", "prompt": LONG}, 400, "prompt", "maximum context length"),
    (TEXT, {"model": "giant-red", "prompt": [9] * 400}, 400, "prompt", "maximum context length"),
    (RESPONSES, {"model": "giant-red", "input": LONG}, 400, "input", "maximum context length"),
    (CHAT, chat(temperature=-1), 400, "temperature", "non-negative"),
    (TEXT, {"model": "giant-red", "prompt": None, "prompt_embeds": []}, 400, "prompt", "must be provided"),
    (TEXT, {"model": "giant-red", "prompt": [9] * 256}, 400, "prompt", "whole context of 256 tokens"),
    (TEXT, {"model": "giant-red", "prompt": [9] * 256, "max_tokens": None}, 400, "prompt", "whole context"),
    (RESPONSES, {"model": "giant-red", "input": "hi", "max_output_tokens": 0}, 400, "max_output_tokens", "at least 1"),
    (CHAT, chat(max_tokens=0), 400, "max_tokens", "at least 1"),
    (CHAT, chat(n=-1), 400, "n", "at least 1"),
    (CHAT, chat(n=2, temperature=0), 400, "n", "greedy"),
    (CHAT, chat(min_tokens=-1), 400, "min_tokens", "0"),
    (CHAT, chat(min_tokens=9), 400, "min_tokens", "max_tokens"),
    (CHAT, chat(min_p=2), 400, "min_p", "[0, 1]"),
    (CHAT, chat(top_k=-5), 400, "top_k", "0"),
    (CHAT, chat(presence_penalty=9), 400, "presence_penalty", "[-2, 2]"),
    (CHAT, chat(frequency_penalty=-9), 400, "frequency_penalty", "[-2, 2]"),
    (CHAT, chat(repetition_penalty=0), 400, "repetition_penalty", "greater than zero"),
    (CHAT, chat(stop=[""]), 400, "stop", "empty"),
    (TEXT, {"model": "giant", "prompt": "a", "bad_words": [""]}, 400, "bad_words", "empty"),
    (CHAT, chat(logprobs=True, top_logprobs=100), 400, "top_logprobs", "20"),
    (CHAT, chat(chat_template="{{ oops("), 400, "chat_template", "not accepted"),
    (CHAT, chat(chat_template_kwargs={"messages": 1}), 400, "chat_template_kwargs", "sets itself"),
    (CHAT, chat(add_generation_prompt=True, continue_final_message=True), 400, "continue_final_message", "both"),
    (CHAT, chat(repetition_detection={"max_pattern_size": -1}), 400, "repetition_detection", "max_pattern_size"),
    (CHAT, chat(thinking_token_budget=3), 400, "thinking_token_budget", "reason apart"),
    (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}]),
     400, "messages", "only text"),
    (RESPONSES, {"model": "giant-red", "input": []}, 400, "input", "at least one message"),
    (TEXT, {"model": "giant-red", "prompt": [10**6]}, 400, "prompt", "out of vocabulary"),
    (TEXT, {"model": "giant-red", "prompt": []}, 400, "prompt", "at least one token"),
    (TEXT, {"model": "giant-red", "prompt": "a", "vllm_xargs": {"kv_transfer_params": "x"}},
     400, "vllm_xargs.kv_transfer_params", "engine's own"),
    (CHAT, chat(use_beam_search=True, n=2), 400, "use_beam_search", "large model only"),
]  # fmt: skip
INTERNALS = ("()", "parameter=", "Union[", "--", "VLLM_", "Traceback", "__", "0x", "jinja2", "pydantic")
HALF = "\ud800"


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == answer.status_code
    return error


@pytest.mark.parametrize(("path", "body", "status", "param", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_field(
    server: ServerProcess, path: str, body: dict[str, Any], status: int, param: str, words: str
) -> None:
    answer = httpx.post(server.url + path, json=body)
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (status, param), error
    assert words in error["message"]
    assert not [part for part in INTERNALS if part in error["message"]], error


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (TEXT, {"prompt": HALF}, "prompt"),
        (TEXT, {"prompt": ["a", HALF]}, "prompt.1"),
        (TEXT, {"prompt": "a", "bad_words": [HALF]}, "bad_words.0"),
        (TEXT, {"prompt": "a", "stop": HALF}, "stop"),
        (TEXT, {"prompt": "a", "user": HALF}, "user"),
        (TEXT, {"prompt": "a", "structured_outputs": {"choice": [HALF]}}, "structured_outputs.choice.0"),
        (CHAT, {"messages": [{"role": "user", "content": HALF}]}, "messages.0.content"),
        (CHAT, {"messages": MESSAGES, "tools": [{"function": {"name": HALF}}]}, "tools.0.function.name"),
        (RESPONSES, {"input": HALF}, "input"),
        ("/tokenize", {"prompt": HALF}, "prompt"),
        ("/detokenize", {"tokens": [1], HALF: 1}, "body"),
    ],
)
def test_half_a_character(server: ServerProcess, path: str, body: dict[str, Any], param: str) -> None:
    content = json.dumps({"model": "giant-red", **body})
    answer = httpx.post(server.url + path, content=content, headers={"Content-Type": "application/json"})
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (400, param), error
    assert "half a character" in error["message"]


def test_whole_characters_in_halves_are_text(server: ServerProcess) -> None:
    content = json.dumps({"model": "giant-red", "prompt": "\U0001f600 \\ud800", "max_tokens": 1})
    assert "\\ud83d" in content
    answer = httpx.post(server.url + TEXT, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have(server: ServerProcess, number: str) -> None:
    body = f'{{"model": "giant-red", "prompt": "a", "fusion": {{"weighting": "static", "alpha": {number}}}}}'
    answer = httpx.post(server.url + TEXT, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "fusion.alpha"


def test_invalid_json(server: ServerProcess) -> None:
    answer = httpx.post(server.url + CHAT, content='{"model": ', headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["param"] == "body"
    assert "not valid JSON" in error["message"]


def test_wrong_content_type(server: ServerProcess) -> None:
    answer = httpx.post(server.url + CHAT, content="model=giant", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["param"] == "Content-Type"
    assert "application/json" in error["message"]


def test_unknown_path_and_method(server: ServerProcess) -> None:
    for answer, status in ((httpx.get(server.url + "/v1/nothing"), 404), (httpx.get(server.url + CHAT), 405)):
        assert answer.status_code == status
        assert error_of(answer)["code"] == status


def test_settings_cannot_be_smuggled_past_the_field(server: ServerProcess) -> None:
    body = {"model": "giant-red", "prompt": "a", "max_tokens": 2, "vllm_xargs": {"fusion": [1.0]}}
    assert httpx.post(server.url + TEXT, json=body).status_code == 200


def test_the_sdk_raises_its_own_classes(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError, match=r"fusion\.weighting"):
        client.completions.create(model="giant", prompt="a", extra_body={"fusion": {"weighting": "best"}})


def test_the_server_still_answers(client: OpenAI) -> None:
    assert client.completions.create(model="giant-red", prompt="a", max_tokens=3).usage.completion_tokens == 3  # type: ignore[union-attr]
