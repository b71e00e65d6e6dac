"""`logit-fusion chat` against the live server: piped, and in a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from openai import OpenAI

from tests.server_process import ServerProcess

ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
BACKGROUND = re.compile(r"\x1b\[[0-9;]*48;2;(\d+);(\d+);(\d+)m")
SECONDS = 60


def command(url: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "logit_fusion", "chat", "--url", url, "--max-tokens", "8", *arguments]


def environment() -> dict[str, str]:
    hidden = {"NO_COLOR", "FORCE_COLOR", "LOGIT_FUSION_API_KEY"}
    names = {name: value for name, value in os.environ.items() if name not in hidden}
    return names | {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "200"}


def piped(url: str, prompt: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(url, *arguments),
        input=prompt,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env=environment(),
    )


def typed(url: str, *lines: str) -> str:
    """What a terminal shows when these lines are typed."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        command(url), stdin=terminal, stdout=terminal, stderr=terminal, env=environment(), start_new_session=True
    )
    os.close(terminal)
    shown = b""
    todo = [*lines]
    # Lines are typed one by one, each when the prompt stands at the end.
    with contextlib.suppress(OSError):  # the terminal is closed when the process ends
        while data := os.read(controller, 65536):
            shown += data
            text = ANSI.sub("", shown.decode(errors="replace"))
            if todo and text.endswith("> "):
                os.write(controller, todo.pop(0).encode() + b"\n")
    os.close(controller)
    assert process.wait(SECONDS) == 0, shown.decode(errors="replace")
    return shown.decode()


def test_a_piped_prompt_gets_the_plain_answer(server: ServerProcess, client: OpenAI) -> None:
    wanted = client.chat.completions.create(
        model="giant-blue", messages=[{"role": "user", "content": "Hello"}], max_tokens=8, temperature=0
    )
    done = piped(server.url, "Hello\n", "--preset", "giant-blue")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (wanted.choices[0].message.content or "") + "\n"


def test_the_weighting_can_be_chosen(server: ServerProcess, client: OpenAI) -> None:
    wanted = client.chat.completions.create(
        model="giant", messages=[{"role": "user", "content": "Hello"}], max_tokens=8, temperature=0
    )
    done = piped(server.url, "Hello", "--preset", "giant-all", "--weighting", "none")
    assert done.stdout == (wanted.choices[0].message.content or "") + "\n"


def test_static_weights_are_1_unless_the_preset_has_others(server: ServerProcess, client: OpenAI) -> None:
    wanted = client.chat.completions.create(
        model="giant-blue",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=8,
        temperature=0,
        extra_body={"fusion": {"weighting": "static", "alpha": 1.0}},
    )
    done = piped(server.url, "Hello", "--preset", "giant-blue", "--weighting", "static")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (wanted.choices[0].message.content or "") + "\n"


def test_a_terminal_shows_tinted_tokens_and_a_legend(server: ServerProcess) -> None:
    shown = typed(server.url, "/preset giant-blue", "Hello", "/quit")
    assert len(BACKGROUND.findall(shown)) >= 4
    plain = ANSI.sub("", shown)
    assert "giant, giant-red, giant-blue, giant-all" in plain
    assert "giant-blue · static · blue" in plain
    assert re.search(r"■ blue \d", plain)


def test_commands_change_what_is_asked(server: ServerProcess) -> None:
    plain = ANSI.sub(
        "",
        typed(
            server.url,
            "/help",
            "/weighting none",
            "Hello",
            "/alpha 0.5",
            "/experts blue",
            "/experts",
            "/alpha half",
            "/preset giant-rde",
            "/experts green",
            "/weigting kl",
            "/weighting",
            "Hello",
            "/reset",
            "/quit",
        ),
    )
    assert "/preset NAME" in plain
    assert "giant-red · none" in plain
    assert re.search(r"□ large alone \d", plain)
    assert "giant-red · static, alpha 0.5 · red" in plain
    assert "giant-red · static, alpha 0.5 · blue" in plain
    assert re.search(r"■ +blue +[\d,]+ +yes", plain)
    assert "alpha needs a number, not 'half'" in plain
    assert "there is no preset 'giant-rde'; did you mean 'giant-red'?" in plain
    assert "there is no expert 'green'; valid names: red, blue" in plain
    assert "there is no command /weigting; did you mean 'weighting'?" in plain
    assert "giant-red · kl · blue" in plain
    assert "A new conversation." in plain


def test_the_conversation_is_remembered(server: ServerProcess, client: OpenAI) -> None:
    first = "One"
    answer = client.chat.completions.create(
        model="giant-red", messages=[{"role": "user", "content": first}], max_tokens=8, temperature=0
    )
    messages = [
        {"role": "user", "content": first},
        {"role": "assistant", "content": answer.choices[0].message.content},
        {"role": "user", "content": "Two"},
    ]
    body = {"model": "giant-red", "messages": messages, "max_tokens": 8, "temperature": 0}
    second = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60).json()["choices"][0]["message"]
    plain = ANSI.sub("", typed(server.url, first, "Two", "/quit")).replace("\r", "")
    assert second["content"] in plain


def test_a_server_that_is_not_there() -> None:
    done = piped("http://127.0.0.1:9", "Hello")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: no server answers at http://127.0.0.1:9; start one with `logit-fusion serve`, or give its --url\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "gaint"), "there is no preset 'gaint'; did you mean 'giant'?"),
        (("--weighting", "kl-gird"), "there is no weighting 'kl-gird'; did you mean 'kl-grid'?"),
    ],
)
def test_wrong_options(server: ServerProcess, arguments: tuple[str, str], message: str) -> None:
    done = piped(server.url, "Hello", *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_a_refused_request(server: ServerProcess) -> None:
    done = piped(server.url, "Hello", "--preset", "giant-red", "--max-tokens", "100000")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "max_tokens" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (401, {}, "asks for an API key that it knows: give --key, or set LOGIT_FUSION_API_KEY"),
        (429, {"Retry-After": "7"}, "the queue is full; try again in 7 s"),
    ],
)
def test_a_server_that_turns_clients_away(status: int, headers: dict[str, str], message: str) -> None:
    with refusing(status, headers) as url:
        done = piped(url, "Hello")
    assert done.returncode == 1
    assert message in done.stderr


@contextlib.contextmanager
def refusing(status: int, headers: dict[str, str]) -> Iterator[str]:
    """A server that answers everything with one error."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"error": {"message": "the queue is full", "code": status}}).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json", "Content-Length": len(body)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
