"""Examples become the tokens that a server would feed: the chat template's prompt, then the answer and its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.errors import ConfigError
from training.data import Example
from training.tokens import ChatTokenizer
from zoo import FAMILY

LARGE = FAMILY / "models" / "large"
QUESTION = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the code of Canada?"})


def example(answer: str = "Answer: CAN") -> Example:
    return Example(Path("data.jsonl"), 7, QUESTION, answer)


def coder(template: str | None = "own", context: int = 512) -> ChatTokenizer:
    found = ChatTokenizer(LARGE, context)
    if template != "own":
        found.tokenizer.chat_template = template
    return found


def split(coder: ChatTokenizer, example: Example) -> tuple[str, str]:
    (tokens,) = coder.encode([example])
    tokenizer: Any = coder.tokenizer
    return tokenizer.decode(tokens.ids[: tokens.start]), tokenizer.decode(tokens.ids[tokens.start :])


def test_the_prompt_is_the_servers() -> None:
    found = coder()
    (tokens,) = found.encode([example()])
    served = found.tokenizer.apply_chat_template(
        [dict(turn) for turn in QUESTION], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert tokens.ids[: tokens.start] == served
    assert found.tokenizer.decode(tokens.ids[tokens.start :]) == "Answer: CAN</s>"


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}EOS\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        # What stands behind the end token is nobody's to say.
        (CHATML.replace("EOS", "{{ eos_token }}"), "Answer: CAN</s>"),
        # A template that ends a turn by something else than the end token.
        (CHATML.replace("EOS", "<end>"), "Answer: CAN<end>\n</s>"),
        # One that thinks before a last answer, where the prompt alone does not.
        (CHATML.replace("EOS", "</s>").replace("{{ m.content }}", "<think>{{ m.content }}"), "<think>Answer: CAN</s>"),
        # One that begins an answer otherwise than it writes it.
        (CHATML.replace("EOS", "</s>").replace("assistant\n{% endif", "assistant\n<think>{% endif"), "Answer: CAN</s>"),
    ],
)
def test_templates_of_many_kinds(template: str, answer: str) -> None:
    assert split(coder(template), example())[1] == answer


def test_without_a_template_it_is_plain_text() -> None:
    found = coder(None)
    assert not found.chats
    assert split(found, example()) == ("<s>Be brief.\n\nWhat is the code of Canada?", " Answer: CAN</s>")


def test_too_long_an_example_is_named() -> None:
    found = coder(context=20)
    with pytest.raises(ConfigError, match=r"^data.jsonl:7: prompt and answer have \d+ and \d+ tokens; .* 20 in all"):
        found.encode([example()])


def test_what_stands_before_a_user() -> None:
    assert coder().tokenizer.decode(coder().opening) == "<s><|user|>"
    assert coder(None).tokenizer.decode(coder(None).opening) == "<s>"
