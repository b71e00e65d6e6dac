"""Requests that nobody would send on purpose, thousands of them: no 500, nothing kept, and right answers afterwards."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e import plausible
from tests.e2e.plausible import together, with_odd_text
from tests.e2e.test_errors import INTERNALS
from tests.e2e.traffic import body, metric, wait_for
from tests.server_process import ServerProcess

ANTHROPIC = "/v1/messages"
ROUTES = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/tokenize",
    "/detokenize",
)
HUGE = 10**40
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    HUGE,
    -HUGE,
    1e308,
    -1e308,
    0.5,
    "",
    "\x00",
    "\ud800",
    "a" * 5000,
    "none",
    [],
    [[]],
    [None],
    [0],
    [-1],
    [HUGE],
    ["a", 1],
    {},
    {"a": {}},
    {"": None},
    [{"role": "user"}],
    [{"role": "nobody", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
]
FIELDS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "giant-red", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/v1/chat/completions/batch": {"model": "giant-red", "messages": [[{"role": "user", "content": "a"}]]},
    "/v1/completions": {"model": "giant-all", "prompt": "a", "max_tokens": 2},
    "/v1/messages": {"model": "giant-red", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"model": "giant-red", "messages": [{"role": "user", "content": "a"}]},
    "/v1/responses": {"model": "giant", "input": "a", "max_output_tokens": 2},
    "/tokenize": {"model": "giant", "prompt": "a"},
    "/detokenize": {"model": "giant", "tokens": [1]},
}
KNOBS = [
    "model", "messages", "prompt", "input", "tokens", "max_tokens", "max_completion_tokens", "max_output_tokens", "n",
    "best_of", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "logprobs", "top_logprobs",
    "prompt_logprobs", "echo", "stream", "stream_options", "logit_bias", "presence_penalty", "repetition_penalty",
    "response_format", "structured_outputs", "tools", "tool_choice", "bad_words", "allowed_token_ids", "min_tokens",
    "truncate_prompt_tokens", "priority", "cache_salt", "fusion", "user", "metadata", "chat_template",
    "chat_template_kwargs", "reasoning", "text", "store", "background", "previous_response_id", "request_id",
    "vllm_xargs", "kv_transfer_params", "return_token_ids", "add_generation_prompt", "continue_final_message",
    "documents", "suffix", "ignore_eos", "length_penalty", "use_beam_search", "instructions", "include",
    "max_tool_calls", "system", "thinking", "output_config", "stop_sequences",
]  # fmt: skip
FUSION = ["experts", "weighting", "alpha", "alpha_max", "trace", "kind"]


def odd_request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A good request with one to three fields spoilt."""
    route = rng.choice(ROUTES)
    request: dict[str, Any] = dict(FIELDS[route])
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.3:
            request["fusion"] = {rng.choice(FUSION): rng.choice(ODD)}
        else:
            request[rng.choice(KNOBS)] = rng.choice(ODD)
    return route, request


def odd_bytes(rng: random.Random) -> bytes:
    """What is no JSON, or hardly."""
    good = json.dumps(FIELDS["/v1/completions"]).encode()
    kind = rng.randrange(8)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        return b"[" * rng.randrange(1, 50_000)
    if kind == 2:
        return good[: rng.randrange(len(good))]
    if kind == 3:
        return good.replace(b'"a"', b'"\xff\xfe\x00"')
    if kind == 4:
        return good.replace(b"2", b"9" * rng.randrange(1, 10_000))
    if kind == 5:
        return good.replace(b"2", rng.choice([b"NaN", b"Infinity", b"-0", b"1e999", b"0x10", b"2.0000000001"]))
    if kind == 6:
        return b'{"a":' * rng.randrange(1, 2000) + b"1" + b"}" * rng.randrange(1, 2000)
    return good.replace(b'"a"', json.dumps({"\x00": [{}] * rng.randrange(100)}).encode())


async def send_all(
    server: ServerProcess, count: int, make: Callable[[random.Random], tuple[str, bytes]]
) -> Counter[int]:
    """Send `count` requests, 16 at once; return how often each status came."""
    rng = random.Random(count)
    statuses: Counter[int] = Counter()
    bad: list[tuple[str, str, str]] = []

    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        turns = asyncio.Semaphore(16)

        async def one(route: str, content: bytes) -> None:
            async with turns:
                headers = {"Content-Type": "application/json"}
                async with client.stream("POST", route, content=content, headers=headers) as response:
                    text = (await response.aread()).decode(errors="replace")
            statuses[response.status_code] += 1
            fault = fault_of(content, response, text)
            if fault is not None:
                bad.append((fault, content[:300].decode(errors="replace"), text[-300:]))

        await asyncio.gather(*(one(*make(rng)) for _ in range(count)))
    assert not bad, f"{len(bad)} of {count}, such as {bad[:3]}"
    return statuses


def fault_of(content: bytes, response: httpx.Response, text: str) -> str | None:
    """What is wrong with an answer, whatever was asked."""
    if response.status_code >= 500:
        return f"status {response.status_code}"
    if response.status_code >= 400:
        error = json.loads(text).get("error", {})
        # Anthropic's errors have no field for it: the message names it.
        named = error.get("param")
        if response.request.url.path.startswith(ANTHROPIC):
            named = ": " in error["message"] or any(key in error["message"] for key in json.loads(content))
        if response.status_code == 400 and not named:
            return "no param"
        if any(part in error["message"] for part in INTERNALS if part.encode() not in content):
            return "internals in the message"
    elif response.headers["content-type"].startswith("text/event-stream"):
        events = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
        errors = [event.get("error", event) for event in events if "error" in event or event.get("type") == "error"]
        if any(not str(error["code"]).startswith(("4", "BadRequest")) for error in errors):
            return "a stream that breaks off"
    elif response.request.url.path in plausible.MASKED and isinstance(
        (asked := json.loads(content)).get("allowed_token_ids"), list
    ):
        allowed = set(asked["allowed_token_ids"])  # of an answer with 200: token ids
        for choice in json.loads(text).get("choices", ()):
            if allowed and not allowed.issuperset(choice.get("token_ids") or ()):
                return "a token that is not allowed"
    return None


def spoilt(rng: random.Random) -> tuple[str, bytes]:
    if rng.random() < 0.4:
        return rng.choice(ROUTES), odd_bytes(rng)
    route, request = odd_request(rng)
    return route, json.dumps(request).encode(errors="surrogatepass")


def still_right(server: ServerProcess, expected: str) -> None:
    """The server answers as before, and holds nothing of what came between."""
    wait_for(lambda: metric(server.url, "vllm:num_requests_running") == 0, 20)
    assert metric(server.url, "vllm:num_requests_waiting") == 0
    wait_for(lambda: metric(server.url, "fusion_admission_running") == 0, 20)  # some were asked in the background
    assert metric(server.url, "fusion_admission_queue_depth") == 0
    assert greedy(server) == expected


def greedy(server: ServerProcess) -> str:
    answer = httpx.post(server.url + "/v1/completions", json=body(16, temperature=0), timeout=60)
    text: str = answer.json()["choices"][0]["text"]
    return text


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
async def test_malformed_requests(server: ServerProcess, count: int) -> None:
    expected = await asyncio.to_thread(greedy, server)
    statuses = await send_all(server, count, spoilt)
    print(f"\n{count} malformed requests: {dict(sorted(statuses.items()))}")
    assert statuses[400] > count / 2
    await asyncio.to_thread(still_right, server, expected)


# More than any row of the sampler holds.
LONG: list[Any] = [
    [1] * 5_000,
    list(range(30, 3_030)),
    ["a b c d"] * 120,
    ["a b " * 1_000] * 4,
    {str(token): 1 for token in range(3_000)},
    {f"key {number}": "a" for number in range(5_000)},
    ["a"] * 5_000,
]


@pytest.mark.parametrize("values", [2, pytest.param(len(LONG), marks=pytest.mark.long)])
async def test_long_lists_in_every_field(server: ServerProcess, values: int) -> None:
    """No count of entries that the API lets through is one too many for the engine."""
    rng = random.Random(values)
    expected = await asyncio.to_thread(greedy, server)
    routes = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
    requests = [
        (route, encoded(FIELDS[route] | {"min_tokens": 1} | {field: value}))
        for route in routes
        for field in KNOBS
        for value in rng.sample(LONG, values)
    ]
    await send_all(server, len(requests), lambda _: requests.pop())
    await asyncio.to_thread(still_right, server, expected)


# As much as there is room for. Of logit biases there is room for more than this vocabulary has tokens.
ROOM: list[tuple[dict[str, Any], str, str]] = [
    ({"allowed_token_ids": [30] * 1024}, "allowed_token_ids", "at most 1,024 entries"),
    ({"stop_token_ids": list(range(30, 157)), "min_tokens": 1}, "stop_token_ids", "at most 127 tokens"),
    ({"bad_words": [" ".join("ab" * 256), "b"]}, "bad_words", "at most 1,024 tokens in all"),
]


@pytest.mark.parametrize(("fields", "param", "words"), ROOM, ids=[param for _, param, _ in ROOM])
def test_as_much_as_the_sampler_holds_and_one_more(
    server: ServerProcess, fields: dict[str, Any], param: str, words: str
) -> None:
    assert httpx.post(server.url + "/v1/completions", json=body(4, **fields), timeout=60).status_code == 200
    value = fields[param]
    more = [*value, "a" if isinstance(value[0], str) else 29]
    answer = httpx.post(server.url + "/v1/completions", json=body(4, **fields | {param: more}), timeout=60)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


def encoded(request: dict[str, Any]) -> bytes:
    return json.dumps(request).encode(errors="surrogatepass")


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
async def test_fields_together(server: ServerProcess, count: int) -> None:
    """Fields that are right, or nearly, each by itself; and texts of half characters wherever there is a text."""
    expected = await asyncio.to_thread(greedy, server)

    def make(rng: random.Random) -> tuple[str, bytes]:
        route, request = with_odd_text(rng) if rng.random() < 0.3 else together(rng)
        return route, encoded(request | ({"return_token_ids": True} if route == plausible.TEXT else {}))

    statuses = await send_all(server, count, make)
    print(f"\n{count} requests of fields together: {dict(sorted(statuses.items()))}")
    assert statuses[200] > count / 10
    await asyncio.to_thread(still_right, server, expected)


@pytest.mark.parametrize("orders", [2, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_no_order_of_requests_matters(server: ServerProcess, orders: int) -> None:
    """Each request gets the same answer whatever came before it on this server."""
    rng = random.Random(orders)
    requests = [together(rng) for _ in range(60)]
    for _, request in requests:
        # An answer that chance does not change.
        request |= {"temperature": 0}
        request.pop("n", None)
    answers: dict[int, Any] = {}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(orders):
            for number in rng.sample(range(len(requests)), len(requests)):
                route, request = requests[number]
                response = client.post(route, content=encoded(request), headers={"Content-Type": "application/json"})
                assert fault_of(encoded(request), response, response.text) is None, (request, response.text[-300:])
                found = (response.status_code, said(response))
                assert answers.setdefault(number, found) == found, request


def said(response: httpx.Response) -> str:
    """What an answer says, without what differs each time."""
    texts = re.findall(r'"(?:text|content|arguments|message|delta)":\s*"((?:[^"\\]|\\.)*)"', response.text)
    return "".join(texts)


@pytest.mark.parametrize("count", [100, pytest.param(2_000, marks=pytest.mark.long)])
def test_clients_that_vanish(server: ServerProcess, count: int) -> None:
    """They connect and go: at once, within the headers, within the body, after the request, within the answer."""
    expected = greedy(server)
    port = httpx.URL(server.url).port
    assert port is not None
    content = json.dumps(body(100, stream=True)).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(content) + content
    rng = random.Random(1)
    for number in range(count):
        sock = socket.create_connection(("127.0.0.1", port))
        kind = number % 5
        if kind == 1:
            sock.sendall(whole[: rng.randrange(1, len(head))])
        elif kind == 2:
            sock.sendall(whole[: rng.randrange(len(head) + 30, len(whole))])
        elif kind >= 3:
            sock.sendall(whole)
            if kind == 4:
                sock.recv(rng.randrange(1, 2000))
        # Half of them reset the connection rather than closing it.
        if number % 2:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        sock.close()
    still_right(server, expected)


@pytest.mark.parametrize("examples", [5, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_the_documented_schema(server: ServerProcess, examples: int) -> None:
    """Schemathesis makes requests from `/openapi.json`, good and bad ones: none is answered with a 5xx."""
    expected = greedy(server)
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", server.url + "/openapi.json"]
    options = {"max-examples": examples, "seed": 1, "checks": "not_a_server_error", "mode": "all", "phases": "fuzzing"}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run([*command, *arguments, "--no-color"], capture_output=True, text=True, check=False)
    print(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    still_right(server, expected)
