"""Rows of a task's file as prompts and answers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.examples import Example, extract, read_examples
from evaluation.suite import Task
from server.errors import ConfigError
from tests.evaluation.suites import write_rows

PLAIN = {"metric": "exact", "prompt": "{question}", "answer": "{answer}"}
CHOICE = {"metric": "choice", "prompt": "{question}", "answer": "{answer}", "choices": "options"}


def task_of(folder: Path, **keys: Any) -> Task:
    (folder / "rows.jsonl").touch()
    return Task.model_validate({"data": "rows.jsonl", **PLAIN, **keys}, context={"folder": folder})


def read(folder: Path, task: Task, *rows: dict[str, Any], limit: int | None = None) -> list[Example]:
    return read_examples("quiz", task, write_rows(folder / "rows.jsonl", rows), limit)


def test_fields_fill_templates(tmp_path: Path) -> None:
    task = task_of(tmp_path, prompt="{{Q}} {question} of {count}", answer="#### {answer}")
    assert read(tmp_path, task, {"question": "How many?", "count": 3, "answer": 2.5}) == [
        Example("{Q} How many? of 3", "#### 2.5")
    ]


def test_marks_are_removed(tmp_path: Path) -> None:
    task = task_of(tmp_path, remove="<<.*?>>")
    row = {"question": "48/2?", "answer": "48/2 = <<48/2=24>>24 and <<1+1=2>>2"}
    assert read(tmp_path, task, row)[0].answer == "48/2 = 24 and 2"


def test_compressed_files_and_limits(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"question": str(n), "answer": "a"}) + "\n\n" for n in range(5))
    assert [example.prompt for example in read_examples("quiz", task_of(tmp_path), path, 3)] == ["0", "1", "2"]


def test_the_right_choice_by_position_or_text(tmp_path: Path) -> None:
    task = task_of(tmp_path, **CHOICE)
    rows = [{"question": "?", "options": ["1", "2", "0"], "answer": answer} for answer in (2, "2")]
    assert [example.right for example in read(tmp_path, task, *rows)] == [2, 1]
    assert [example.answer for example in read(tmp_path, task, *rows)] == ["0", "2"]


@pytest.mark.parametrize(
    ("keys", "row", "message"),
    [
        ({}, {"question": "?", "anwser": "x"}, "answer: there is no field 'answer'; did you mean 'anwser'?"),
        ({"prompt": "{question"}, {"question": "?", "answer": "x"}, "prompt: "),
        ({"prompt": "{question!r}"}, {"question": "?", "answer": "x"}, "prompt: only a field's name may stand"),
        ({"extract": "#### (.+)"}, {"question": "?", "answer": "x"}, "finds nothing in the right answer 'x'"),
        (CHOICE, {"question": "?", "options": "a, b", "answer": 0}, "must be a list of two texts or more"),
        (CHOICE, {"question": "?", "options": ["a", "b"], "answer": 2}, "2 is not the position of a choice, 0 to 1"),
        (CHOICE, {"question": "?", "options": ["a", "b"], "answer": "c"}, "must be one of the choices, exactly once"),
        (CHOICE, {"question": "?", "options": ["a", "a"], "answer": "a"}, "must be one of the choices, exactly once"),
    ],
)
def test_faults_name_file_line_and_field(
    tmp_path: Path, keys: dict[str, Any], row: dict[str, Any], message: str
) -> None:
    good = {"question": "?", "answer": "#### 1", "options": ["#### 1", "b"]}
    with pytest.raises(ConfigError) as fault:
        read(tmp_path, task_of(tmp_path, **keys), *([good] if "prompt" not in keys else []), row)
    assert message in str(fault.value)
    assert f"rows.jsonl:{1 if 'prompt' in keys else 2}: task 'quiz'" in str(fault.value)


@pytest.mark.parametrize(
    ("line", "message"), [("{", "not valid JSON"), ("[1]", "one JSON object is needed"), ("", "the file has none")]
)
def test_files_that_hold_no_examples(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "other.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match=message):
        read_examples("quiz", task_of(tmp_path), tmp_path / "other.jsonl", None)


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (None, " plain\n", "plain"),
        ("#### (.+)", "#### 3\nno, #### 4 ", "4"),
        (r"-?\d+", "from 3 to -4", "-4"),
        ("#### (.+)", "nothing", None),
    ],
)
def test_extract(tmp_path: Path, pattern: str | None, text: str, found: str | None) -> None:
    assert extract(task_of(tmp_path, extract=pattern), text) == found


TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def conversation(folder: Path, **keys: Any) -> Task:
    (folder / "rows.jsonl").touch()
    task = {"data": "rows.jsonl", "metric": "exact", "messages": "turns", "answer": "{answer}", "chat": True}
    return Task.model_validate(task | keys, context={"folder": folder})


def test_a_conversation_ends_in_the_question(tmp_path: Path) -> None:
    row = {"turns": TURNS, "answer": "So."}
    assert read(tmp_path, conversation(tmp_path), row) == [Example("Why?", "So.", before=(TURNS[0],))]
    assert read(tmp_path, conversation(tmp_path, chat=False), row) == [Example("Be brief.\n\nWhy?", "So.")]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "messages: field 'turns' must be a list of messages, not []"),
        ([{"role": "user"}], 'messages: a message is {"role": ..., "content": ...}, both texts'),
        ([*TURNS, {"role": "assistant", "content": "So."}], "the last one must be the user's, not the assistant's"),
    ],
)
def test_what_is_no_conversation_is_named(tmp_path: Path, turns: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, conversation(tmp_path), {"turns": turns, "answer": "So."})
    assert message in str(error.value)
