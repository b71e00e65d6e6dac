"""Examples are read line by line, and what is held out is never trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.errors import ConfigError
from training.data import LEAST_HELD_OUT, LEAST_TRAINED, as_rows, read_data, read_examples

Row = dict[str, Any]


def chat(question: str, answer: str = "yes") -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def file_of(folder: Path, *rows: Row | str, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_every_answer_of_a_conversation_is_an_example(tmp_path: Path) -> None:
    turns = [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    first, second = read_examples(file_of(tmp_path, {"messages": messages}))
    assert (list(first.turns), first.answer) == (messages[:2], "b")
    assert (list(second.turns), second.answer) == (messages[:4], "d")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": "b"},
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "source": "x"},
    ],
)
def test_shapes_of_an_example(tmp_path: Path, row: Row) -> None:
    (example,) = read_examples(file_of(tmp_path, "", row))
    assert (example.line, example.turns, example.answer) == (2, ({"role": "user", "content": "a"},), "b")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "not valid JSON"),
        ("[]", "an example is an object, not a list"),
        ({"promt": "a", "completion": "b"}, "'promt': did you mean 'prompt'?"),
        ({"prompt": "a"}, "it has neither messages nor prompt and completion"),
        ({"prompt": "a", "completion": " "}, "completion: a text that is not empty is needed, not ' '"),
        ({"messages": []}, "messages: a list of messages is needed, not []"),
        ({"messages": ["a"]}, "messages.0: a message is"),
        ({"messages": [{"role": "users", "content": "a"}]}, "messages.0.role: 'users' is not one of system"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content: a text is needed"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages: none is the assistant's"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages.0: the assistant answers nobody"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Row | str, fault: str) -> None:
    path = file_of(tmp_path, chat("a"), line)
    with pytest.raises(ConfigError) as error:
        read_examples(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert fault in str(error.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"", "there is no example in it"), (b"\n \n", "there is no example in it"), (b'{"\xe9', ":1: not UTF-8 text")],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=fault):
        read_examples(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_examples(tmp_path / "absent.jsonl")


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(chat("a")).encode())
    assert len(read_examples(path)) == 1


def test_the_held_out_part_shares_no_question(tmp_path: Path) -> None:
    rows = [chat(f"question {number // 2}", f"answer {number}") for number in range(100)]
    path = file_of(tmp_path, *rows)
    data = read_data(path, None, 0.2, seed=1)
    assert len(data.held_out) == 20
    assert len(data.trained) == 80
    assert not {e.question for e in data.trained} & {e.question for e in data.held_out}
    assert read_data(path, None, 0.2, seed=1) == data
    assert read_data(path, None, 0.2, seed=2).held_out != data.held_out


def test_answers_of_one_conversation_stay_together(tmp_path: Path) -> None:
    def talk(number: int) -> Row:
        turns = [("user", f"first {number}"), ("assistant", "a"), ("user", "then?"), ("assistant", "b")]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    data = read_data(file_of(tmp_path, *map(talk, range(30))), None, 0.2, seed=0)
    assert not {e.line for e in data.trained} & {e.line for e in data.held_out}


def test_too_few_examples(tmp_path: Path) -> None:
    path = file_of(tmp_path, chat("only one"))
    with pytest.raises(ConfigError, match=rf"at least {LEAST_TRAINED} examples .* to train on; there are 0"):
        read_data(path, None, 0.2, 0)
    many = file_of(tmp_path, *(chat(str(number)) for number in range(20)), name="many.jsonl")
    with pytest.raises(ConfigError, match=rf"data.jsonl: at least {LEAST_HELD_OUT} .* to hold out; there are 1"):
        read_data(many, path, 0.2, 0)


def test_a_held_out_question_that_is_trained_on(tmp_path: Path) -> None:
    trained = file_of(tmp_path, *(chat(str(number)) for number in range(20)))
    held_out = file_of(tmp_path, *(chat(f"other {n}") for n in range(9)), chat("7"), name="held.jsonl")
    with pytest.raises(ConfigError, match=rf"{held_out}:10: its prompt is trained on, in line 8 of {trained}"):
        read_data(trained, held_out, 0.2, 0)


def test_what_is_held_out_is_written_for_the_evaluation(tmp_path: Path) -> None:
    examples = read_examples(file_of(tmp_path, chat("a", "b")))
    assert [json.loads(row) for row in as_rows(examples)] == [
        {"messages": [{"role": "user", "content": "a"}], "answer": "b"}
    ]
