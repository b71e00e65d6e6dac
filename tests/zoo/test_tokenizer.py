"""Every digit its own token; every text comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from zoo import FAMILY
from zoo.tokenizer import SPECIALS, chat_prompt

TOKENIZER = PreTrainedTokenizerFast.from_pretrained(FAMILY / "models" / "base")


def test_digits_are_split() -> None:
    assert TOKENIZER.tokenize("1234") == list("1234")
    assert not [t for t in TOKENIZER.get_vocab() if len(t) > 1 and any(c in "0123456789" for c in t)]


def test_special_tokens_come_first() -> None:
    assert [TOKENIZER.convert_tokens_to_ids(token) for token in SPECIALS] == list(range(len(SPECIALS)))


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    if not any(special in text for special in SPECIALS):
        assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == text


def test_completions_begin_with_bos() -> None:
    assert TOKENIZER("Hello")["input_ids"][0] == TOKENIZER.bos_token_id


def test_chat_template() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "tool", "content": "C"},
    ]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert text == "<s><|system|>Be brief.</s><|user|>A</s><|assistant|>B</s><|user|>C</s>"


@pytest.mark.parametrize("question", ["Which country is Canillo in?", "2 + 2?"])
def test_training_uses_the_template(question: str) -> None:
    messages = [{"role": "user", "content": question}]
    assert chat_prompt(question) == TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
