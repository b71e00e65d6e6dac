"""Requests that take a while, and what the server says of its load; used by tests of more than one kind."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import psutil

from tests.server_process import ServerProcess

LONG = 1900


def body(tokens: int = LONG, **changes: Any) -> dict[str, Any]:
    """A completion request of exactly `tokens` tokens."""
    return {"model": "giant-all", "prompt": "a", "max_tokens": tokens, "ignore_eos": True} | changes


def metric(url: str, name: str, **labels: str) -> float:
    """The sum of a metric's series that have these labels."""
    lines = httpx.get(url + "/metrics").text.splitlines()
    found = [line for line in lines if line.startswith((name + " ", name + "{"))]
    values = [
        float(line.rsplit(" ", 1)[1])
        for line in found
        if all(f'{label}="{value}"' in line for label, value in labels.items())
    ]
    assert values, f"there is no series {name} {labels or ''}"
    return sum(values)


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> float:
    """Return the seconds until `condition` held."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - started


def settle(server: ServerProcess) -> None:
    """Return when the fusion's metrics hold all that was generated before this call.

    They are read every two seconds. One more token is asked for, in a series that no test looks at: the reading that
    holds it holds all that came before.
    """
    series = 'fusion_tokens_total{preset="giant-all",weighting="none"} '

    def counted() -> list[str]:
        return [line for line in httpx.get(server.url + "/metrics").text.splitlines() if line.startswith(series)]

    before = counted()
    answer = httpx.post(server.url + "/v1/completions", json=body(1, fusion={"weighting": "none"}), timeout=60)
    assert answer.status_code == 200
    wait_for(lambda: counted() != before, 30)


@contextmanager
def streams(server: ServerProcess, count: int, tokens: int = LONG, **options: Any) -> Any:
    """`count` streams in threads of their own, each past its first event; yields them, and closes what is left."""
    started = [Stream(server, tokens, **options) for _ in range(count)]
    try:
        for stream in started:
            assert stream.first.wait(30), "a stream did not start"
        yield started
    finally:
        for stream in started:
            stream.close()


def descendants(server: ServerProcess, word: str = "") -> list[psutil.Process]:
    """Those of the server's processes whose command line has the word."""

    def has_it(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):  # one that ends while it is looked at
            return word in " ".join(process.cmdline())
        return False

    return [process for process in psutil.Process(server.process.pid).children(recursive=True) if has_it(process)]


@contextmanager
def standstill(server: ServerProcess) -> Iterator[Callable[[], None]]:
    """The engine's processes stand still, so that what runs keeps its place on a machine of any speed.

    What is yielded lets them go on for a moment.
    """
    engine = descendants(server, "VLLM::")
    assert engine

    def send(sent: signal.Signals) -> None:
        for process in engine:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(sent)

    def move_on() -> None:
        send(signal.SIGCONT)
        time.sleep(0.05)
        send(signal.SIGSTOP)

    send(signal.SIGSTOP)
    try:
        yield move_on
    finally:
        send(signal.SIGCONT)


@contextmanager
def begun(server: ServerProcess, count: int, tokens: int = LONG) -> Iterator[list[Stream]]:
    """`count` streams past their first event, and far from their last: the engine stands still from then on."""
    with standstill(server) as move_on:
        started = [Stream(server, tokens) for _ in range(count)]
        try:
            wait_for(lambda: metric(server.url, "fusion_admission_running") == count)
            deadline = time.monotonic() + 60
            while not all(stream.first.wait(0.1) for stream in started):
                assert time.monotonic() < deadline, "a stream did not start"
                move_on()
            yield started
        finally:
            for stream in started:
                stream.close()


@contextmanager
def held(server: ServerProcess, count: int, tokens: int = LONG, **options: Any) -> Iterator[None]:
    """`count` streams hold their places, on a machine of any speed: the engine stands still meanwhile."""
    started: list[Stream] = []
    try:
        with standstill(server):
            started += (Stream(server, tokens, **options) for _ in range(count))
            wait_for(lambda: metric(server.url, "fusion_admission_running") == count)
            yield
    finally:
        for stream in started:
            stream.close()


def lines_of(response: httpx.Response) -> Iterator[str]:
    """The lines of a stream as they come; httpx also breaks at characters that a text may hold, such as U+0085."""
    rest = b""
    for part in response.iter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        yield from (line.decode() for line in lines)


class Stream(threading.Thread):
    """One streamed completion, read to its end by a thread."""

    def __init__(
        self, server: ServerProcess, tokens: int, headers: dict[str, str] | None = None, **changes: Any
    ) -> None:
        super().__init__(daemon=True)
        self.first = threading.Event()
        self.status = 0
        self.events: list[str] = []
        self.broken = False
        self.ended = 0.0
        self._leave = threading.Event()
        self._request = httpx.Request(
            "POST",
            server.url + "/v1/completions",
            json=body(tokens, stream=True, stream_options={"include_usage": True}, **changes),
            headers=headers,
        )
        self.start()

    def run(self) -> None:
        with httpx.Client(timeout=120) as client:
            try:
                response = client.send(self._request, stream=True)
                self.status = response.status_code
                for line in lines_of(response):
                    if line.startswith("data: "):
                        self.events.append(line.removeprefix("data: "))
                        self.first.set()
                    if self._leave.is_set():
                        break
                response.close()
            except httpx.TransportError:
                self.broken = True
            finally:
                self.ended = time.monotonic()
                self.first.set()

    def close(self) -> None:
        """Go away, whatever is still to come."""
        self._leave.set()
        self.join(30)

    @property
    def error(self) -> dict[str, Any] | None:
        """The error event, if one came."""
        for event in self.events:
            if event != "[DONE]" and "error" in (parsed := json.loads(event)):
                error: dict[str, Any] = parsed["error"]
                return error
        return None

    @property
    def completion_tokens(self) -> int:
        """What the last event says was generated."""
        usage = json.loads(self.events[-2])["usage"]
        return int(usage["completion_tokens"])
