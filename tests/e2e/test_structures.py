"""What cannot be followed is refused by field and keyword, what can be is never dropped, and nobody else is harmed."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from typing import Any

import httpx
import jsonschema
import psutil
import pytest

from tests.e2e.test_errors import CHAT, RESPONSES, TEXT, chat, error_of
from tests.e2e.traffic import wait_for
from tests.server_process import ServerProcess

ARGUMENTS = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
CALL = {"type": "function", "function": {"name": "pick", "parameters": ARGUMENTS}}


def text(**fields: Any) -> dict[str, Any]:
    return {"model": "giant-red", "prompt": "a b", "max_tokens": 8, **fields}


def responses(**fields: Any) -> dict[str, Any]:
    return {"model": "giant-red", "input": "hi", "max_output_tokens": 16, **fields}


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def tool(parameters: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "pick", "parameters": parameters, **fields}}


def structured(**fields: Any) -> dict[str, Any]:
    return text(structured_outputs=fields)


UNIQUE = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
SCHEMA = "response_format.json_schema.schema"
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    # path, body, param, words of the message
    (CHAT, chat(response_format=schema_format(UNIQUE)), SCHEMA, "'uniqueItems' cannot be followed"),
    (TEXT, text(response_format=schema_format({"not": {}})), SCHEMA, "'not'"),
    (CHAT, chat(response_format=schema_format({"$ref": "#"})), SCHEMA, "no text can satisfy it"),
    (CHAT, chat(response_format=schema_format({"minProperties": 10**6})), SCHEMA, "max_required_count"),
    (CHAT, chat(response_format=schema_format({"type": "strin"})), SCHEMA, "strin"),
    (RESPONSES, responses(text={"format": {"type": "json_schema", "name": "a", "schema": {"not": {}}}}),
     "text.format.schema", "'not'"),
    (CHAT, chat(tools=[CALL, tool({"type": "strin"})]), "tools.1.function.parameters", "strin"),
    (CHAT, chat(tools=[tool(UNIQUE, strict=True)]), "tools.0.function.parameters", "'uniqueItems'"),
    (RESPONSES, responses(tools=[{"type": "function", "name": "pick", "parameters": UNIQUE, "strict": True}]),
     "tools.0.parameters", "'uniqueItems'"),
    (CHAT, chat(tools=[{"type": "function", "function": {"name": ""}}]), "tools.0.function.name", "a name"),
    (CHAT, chat(tools=[{"type": "function", "function": {"name": "a" * 10**6}}]), "tools.0.function.name", "max_name"),
    (TEXT, structured(json="[" * 5000), "structured_outputs.json", "max_json_depth"),
    (TEXT, structured(json={"enum": list(range(20_000))}), "structured_outputs.json", "max_enum_values"),
    (TEXT, structured(json_object=False), "structured_outputs.json_object", "true"),
    (TEXT, structured(regex="(a"), "structured_outputs.regex", "unclosed group"),
    (TEXT, structured(regex="a" * 5_000_000), "structured_outputs.regex", "max_text_length"),
    (TEXT, structured(grammar="root ::= root"), "structured_outputs.grammar", "no text"),
    (TEXT, structured(grammar="r ::= s\n" * 100_000), "structured_outputs.grammar", "max_grammar_rules"),
    (TEXT, structured(choice=[]), "structured_outputs.choice", "at least one"),
    (TEXT, structured(structural_tag="{}"), "structured_outputs.structural_tag", "no structural tag"),
    (CHAT, chat(response_format={"type": "structural_tag", "format": {"type": "x"}}), "response_format", "'x'"),
    (TEXT, structured(), "structured_outputs", "one of json"),
    (TEXT, structured(json={}, regex="a"), "structured_outputs", "only one of"),
    (CHAT, chat(tools=[CALL], structured_outputs={"grammar": 'root ::= "a"'}), "structured_outputs.grammar", "tools"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused_by_field(server: ServerProcess, path: str, body: dict[str, Any], param: str, words: str) -> None:
    answer = httpx.post(server.url + path, json=body)
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (400, param), error
    assert words in error["message"]


def test_one_request_does_not_choose_for_the_next(server: ServerProcess) -> None:
    """Each kind of constraint, in both orders: a backend that the first one chose would refuse or drop the others."""
    bodies: list[tuple[str, dict[str, Any]]] = [
        (CHAT, chat(response_format=schema_format({"type": "number", "multipleOf": 0.01}))),
        (CHAT, chat(tools=[CALL], tool_choice="required", max_tokens=20)),
        (CHAT, chat(tools=[CALL], max_tokens=8)),
        (CHAT, chat(tools=[CALL], response_format=schema_format({"type": "integer"}))),
        (RESPONSES, responses(tools=[{"type": "function", "name": "pick", "parameters": ARGUMENTS}])),
        (TEXT, structured(regex=r"\p{L}+")),
        (TEXT, structured(grammar='root ::= "a" | "b"')),
        (TEXT, structured(choice=["red", "blue"])),
        (TEXT, structured(structural_tag=json.dumps({"format": {"type": "const_string", "value": "ok"}}))),
        (CHAT, chat(response_format={"type": "json_object"})),
    ]
    for path, body in (*bodies, *reversed(bodies)):
        answer = httpx.post(server.url + path, json=body, timeout=60)
        assert answer.status_code == 200, (body, answer.text)


@pytest.mark.parametrize(
    ("schema", "tokens"),
    [({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 99}, 8), ({"enum": ["é", 2]}, 8)],
)
def test_followed_to_the_letter(server: ServerProcess, schema: dict[str, Any], tokens: int) -> None:
    for seed in range(5):
        body = chat(response_format=schema_format(schema), max_tokens=tokens, seed=seed)
        choice = httpx.post(server.url + CHAT, json=body).json()["choices"][0]
        assert choice["finish_reason"] == "stop", choice
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)


def test_options_beside_a_schema_are_followed(server: ServerProcess) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    followed: list[tuple[dict[str, Any], str]] = [
        ({"disable_any_whitespace": True, "disable_additional_properties": True}, r'\{"a":1\}'),
        # Of spaces there may be more than `max_tokens` has room for.
        ({"whitespace_pattern": " ", "disable_additional_properties": True}, r'\{ *("a" *(: *(1 *(\})?)?)?)?'),
    ]
    for options, expected in followed:
        body = structured(json=schema, **options) | {"max_tokens": 30}
        assert re.fullmatch(expected, httpx.post(server.url + TEXT, json=body).json()["choices"][0]["text"])
    refused: list[tuple[dict[str, Any], str]] = [
        ({"json": schema, "whitespace_pattern": "("}, "unclosed"),
        ({"regex": "a"}, "only"),
    ]
    for options, words in refused:
        answer = httpx.post(server.url + TEXT, json=structured(**{"disable_any_whitespace": True, **options}))
        assert answer.status_code == 400
        assert words in error_of(answer)["message"]


def test_a_structural_tag_is_followed(server: ServerProcess) -> None:
    tag = {"type": "tag", "begin": "<n>", "content": {"type": "regex", "pattern": "[0-9]{2}"}, "end": "</n>"}
    body = chat(response_format={"type": "structural_tag", "format": tag}, max_tokens=16)
    content = httpx.post(server.url + CHAT, json=body).json()["choices"][0]["message"]["content"]
    assert content.startswith("<n>")
    assert content[3:5].isdigit()
    assert content.endswith("</n>")


@pytest.mark.parametrize("strict", [{}, {"strict": None}, {"strict": False}])
def test_a_tool_that_is_not_strict_follows_the_rest_of_its_schema(
    server: ServerProcess, strict: dict[str, bool | None]
) -> None:
    body = chat(tools=[tool(UNIQUE, **strict)], tool_choice="required")
    assert httpx.post(server.url + CHAT, json=body).status_code == 200


class TestMasks:
    """Fields that leave no token."""

    @pytest.fixture(scope="class")
    def ids(self, server: ServerProcess) -> dict[str, int]:
        found = {}
        for character in "abz":
            answer = httpx.post(server.url + "/tokenize", json={"model": "giant", "prompt": character})
            (found[character],) = answer.json()["tokens"]
        return found

    def test_at_the_first_token(self, server: ServerProcess, ids: dict[str, int]) -> None:
        fields: list[tuple[dict[str, Any], str, tuple[str, ...]]] = [
            ({"allowed_token_ids": [ids["a"]], "bad_words": ["a"]}, "allowed_token_ids", ("bad_words",)),
            ({"allowed_token_ids": [2], "min_tokens": 2, "stop_token_ids": [2]}, "allowed_token_ids", ("min_tokens",)),
            (
                {"allowed_token_ids": [ids["a"]], "structured_outputs": {"regex": "zzz"}},
                "structured_outputs.regex",
                ("allowed_token_ids",),
            ),
        ]
        for body, param, others in fields:
            for stream in (False, True):
                answer = httpx.post(server.url + TEXT, json=text(**body, stream=stream))
                error = error_of(answer)
                assert (answer.status_code, error["param"]) == (400, param), error
                for name in (param, *others):
                    assert name in error["message"]

    def test_later(self, server: ServerProcess) -> None:
        """One token is allowed, and banned after itself, so that the second place has nothing left."""

        def tokens(text: str) -> list[int]:
            answer = httpx.post(server.url + "/tokenize", json={"model": "giant", "prompt": text})
            found: list[int] = answer.json()["tokens"]
            return found

        twice = next(character * 2 for character in "~^|@#%&;ZQ" if len(tokens(character * 2)) == 2)
        for body in (
            {"allowed_token_ids": tokens(twice)[:1], "bad_words": [twice]},
            {"structured_outputs": {"choice": ["a"]}, "min_tokens": 6},
        ):
            answer = httpx.post(server.url + TEXT, json=text(**body))
            error = error_of(answer)
            assert answer.status_code == 400, error
            assert all(name in error["message"] for name in body), error
            assert "contradict" in error["message"]
            assert error["param"] in body
            stream = httpx.post(server.url + TEXT, json=text(**body, stream=True)).text
            events = [json.loads(line[6:]) for line in stream.split("\n") if line.startswith("data: {")]
            assert "contradict" in events[-1]["error"]["message"], stream
            assert events[-1]["error"]["code"] == 400

    def test_nobody_is_left_behind(self, server: ServerProcess) -> None:
        assert httpx.post(server.url + TEXT, json=text()).status_code == 200


class TestCost:
    """Compiling is bounded, ends with its request, and slows nobody down."""

    def hostile(self, number: int) -> dict[str, Any]:
        """A grammar within the counted limits that takes most of a second, and differs each time."""
        rules = "\n".join(f'r{i} ::= "a{i}x{number}" r{i + 1} | "x"' for i in range(900))
        return structured(grammar=f'root ::= r0\n{rules}\nr900 ::= "z"')

    def test_the_work_ends_with_its_request(self, server: ServerProcess) -> None:
        def workers() -> list[psutil.Process]:
            found = psutil.Process(server.process.pid).children(recursive=True)
            return [process for process in found if "server.engine.structures.worker" in words(process)]

        def words(process: psutil.Process) -> list[str]:
            with contextlib.suppress(psutil.NoSuchProcess):
                return process.cmdline()
            return []

        def at_work(process: psutil.Process) -> bool:
            with contextlib.suppress(psutil.NoSuchProcess):
                return process.cpu_percent(0.2) >= 10
            return False

        httpx.post(server.url + TEXT, json=structured(regex="a"))
        before = {process.pid for process in workers()}
        assert before
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + TEXT, json=self.hostile(1), timeout=0.1)
        wait_for(lambda: not any(at_work(process) for process in workers()), 10)
        assert not before.issubset({process.pid for process in workers()}), "the worker went with its request"

    def test_others_wait_no_longer(self, server: ServerProcess) -> None:
        def first_token(body: dict[str, Any]) -> float:
            began = time.perf_counter()
            with client.stream("POST", TEXT, json=body) as answer:
                assert answer.status_code == 200
                next(answer.iter_lines())
            return time.perf_counter() - began

        def median(body: dict[str, Any]) -> float:
            return sorted(first_token(body) for _ in range(15))[7]

        plain, structured_one = text(stream=True), {**structured(json_object=True), "stream": True}
        stop = threading.Event()

        def flood(number: int) -> None:
            with httpx.Client(base_url=server.url, timeout=60) as hostile:
                while not stop.is_set():
                    number += 1000
                    hostile.post(TEXT, json=self.hostile(number))

        with httpx.Client(base_url=server.url, timeout=60) as client:
            quiet = [median(body) for body in (plain, structured_one)]
            floods = [threading.Thread(target=flood, args=(number,)) for number in range(4)]
            for thread in floods:
                thread.start()
            try:
                time.sleep(1)
                loud = [median(body) for body in (plain, structured_one)]
            finally:
                stop.set()
                for thread in floods:
                    thread.join()
        print(f"\nfirst token, quiet and beside four floods: {quiet} {loud}")
        for calm, busy in zip(quiet, loud, strict=True):
            assert busy < 2 * calm + 0.1, (quiet, loud)
