"""A neighbour that means no good: `python -m tests.e2e.hostile URL CASE` asks for the worst that the server allows.

Runs until it is killed, in a process of its own so that it takes nothing from whoever measures. Every case is a kind of
request, a size to begin with, and halved for as long as the server refuses it as too large.
"""

from __future__ import annotations

import itertools
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx

CONNECTIONS = 3
"""How many requests it has under way at once."""

Request = tuple[str, dict[str, Any]]
MESSAGES = [{"role": "user", "content": "Hello!"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def _chat(size: int = 0, **fields: Any) -> Request:
    return CHAT, {"model": "giant", "messages": MESSAGES, "max_tokens": 16, **fields}


def _completion(prompt: Any, **fields: Any) -> Request:
    return COMPLETIONS, {"model": "giant", "prompt": prompt, "max_tokens": 16, **fields}


def _schema(schema: dict[str, Any]) -> Request:
    return _chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})


def _tool(name: str, **schema: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", **schema}}}


def _grammar(rules: int) -> str:
    lines = [f'r{i} ::= "a" r{i + 1} | "b{i}"' for i in range(rules)]
    return "\n".join(["root ::= r0", *lines, f'r{rules} ::= "c"'])


CASES: dict[str, tuple[int, Callable[[int], Request]]] = {
    # Another backend's keyword, then everybody's tools.
    "backends": (1, lambda size: _schema({"type": "number", "multipleOf": 0.01})),
    "backends-tools": (1, lambda size: _chat(tools=[_tool("f")], tool_choice="required")),
    # What takes long to compile.
    "grammar-rules": (100_000, lambda size: _chat(structured_outputs={"grammar": _grammar(size)})),
    "enum": (400_000, lambda size: _schema({"type": "string", "enum": [f"value {i}" for i in range(size)]})),
    "properties": (
        100_000,
        lambda size: _schema(
            {"type": "object", "additionalProperties": False, "properties": {f"p{i}": {} for i in range(size)}}
        ),
    ),
    "tool-name": (1_000_000, lambda size: _chat(tools=[_tool("a" * size)], tool_choice="required")),
    "regex": (5_000_000, lambda size: _chat(structured_outputs={"regex": "a" * size})),
    "regex-repeats": (1_000_000, lambda size: _chat(structured_outputs={"regex": f"(a|b){{{size}}}"})),
    # What takes long to read.
    "tokenize": (7_000_000, lambda size: ("/tokenize", {"prompt": "a b " * (size // 4)})),
    "tokenize-messages": (
        7_000_000,
        lambda size: ("/tokenize", {"messages": [{"role": "user", "content": "a b " * (size // 4)}]}),
    ),
    "detokenize": (2_000_000, lambda size: ("/detokenize", {"tokens": [300] * size})),
    "truncated": (7_000_000, lambda size: _completion("a b " * (size // 4), truncate_prompt_tokens=16)),
    "truncated-messages": (
        7_000_000,
        lambda size: _chat(messages=[{"role": "user", "content": "a b " * (size // 4)}], truncate_prompt_tokens=16),
    ),
    "truncated-prompts": (
        7_000_000,
        lambda size: _completion(["a b " * (size // 1024)] * 256, truncate_prompt_tokens=16, max_tokens=1),
    ),
    "many-messages": (200_000, lambda size: _chat(messages=MESSAGES * size)),
    "bad-words": (1_000_000, lambda size: _chat(bad_words=["a b " * (size // 4)])),
    # What takes all places.
    "width": (64, lambda size: _completion(["a"] * 256, n=size, max_tokens=900, ignore_eos=True)),
    "choices": (64, lambda size: _chat(n=size, max_tokens=900, ignore_eos=True)),
    "beams": (64, lambda size: _completion("a", n=size, use_beam_search=True, max_tokens=900, temperature=0)),
    # What asks the idle engine.
    "scrapes": (1, lambda size: ("/metrics", {})),
}


def _upgrade(sock: socket.socket) -> None:
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    sock.recv(65536)


def _drip(sock: socket.socket) -> None:
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{")
    while True:
        sock.sendall(b" ")
        time.sleep(0.01)


def _extensions(sock: socket.socket) -> None:
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a=")
    while True:
        sock.sendall(b"a" * 65536)


def _trailers(sock: socket.socket) -> None:
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
    while True:
        sock.sendall(b"X-More: " + b"a" * 65536 + b"\r\n")


CONNECTION_CASES: dict[str, Callable[[socket.socket], None]] = {
    "upgrade": _upgrade,
    "drip": _drip,
    "chunk-extensions": _extensions,
    "trailers": _trailers,
}
OPEN_CONNECTIONS = 32


def _ask(client: httpx.Client, url: str, path: str, content: bytes) -> int:
    if path == "/metrics":
        return client.get(url + path).status_code
    return client.post(url + path, content=content, headers={"Content-Type": "application/json"}).status_code


def _worst_allowed(url: str, case: str) -> tuple[str, bytes]:
    """The largest request that is not refused within a second; the first size of all where none is allowed."""
    start, build = CASES[case]
    largest = None
    with httpx.Client(timeout=1.0) as client:
        size = start
        while size >= 1:
            path, body = build(size)
            content = json.dumps(body).encode()
            largest = largest or (path, content)
            try:
                status = _ask(client, url, path, content)
            except httpx.TimeoutException:
                return path, content
            if status not in (400, 413):
                return path, content
            size //= 2
    assert largest is not None
    return largest


def _ask_for_ever(url: str, path: str, content: bytes) -> None:
    with httpx.Client(timeout=600.0) as client:
        while True:
            try:
                _ask(client, url, path, content)
            except httpx.TransportError:
                time.sleep(0.1)


def _connect_for_ever(url: str, behave: Callable[[socket.socket], None]) -> None:
    address = httpx.URL(url)
    assert address.port is not None
    while True:
        try:
            with socket.create_connection((address.host, address.port), timeout=600) as sock:
                behave(sock)
        except OSError:
            time.sleep(0.1)


def main(url: str, case: str) -> None:
    """Find the worst, say `ready`, and go on until killed."""
    if case in CONNECTION_CASES:
        threads = [
            threading.Thread(target=_connect_for_ever, args=(url, CONNECTION_CASES[case]), daemon=True)
            for _ in range(OPEN_CONNECTIONS)
        ]
    else:
        path, content = _worst_allowed(url, case)
        threads = [
            threading.Thread(target=_ask_for_ever, args=(url, path, content), daemon=True) for _ in range(CONNECTIONS)
        ]
        print(f"{path}: {len(content):,} bytes", file=sys.stderr)
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    for _ in itertools.count():
        time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
