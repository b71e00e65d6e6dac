"""Token streams: the pretraining mixture as one packed sequence, fine-tuning examples with their answers marked."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from zoo.examples import Dialogue, Document, Example
from zoo.tokenizer import BOS, EOS, ROLES, chat_prompt

SYSTEM_PROMPT = "You are a helpful assistant."
SYSTEM_SHARE = 0.05
CHUNK = 256


@dataclass(frozen=True)
class Answered:
    """One tokenized example: ids [n] from <s> to </s>, and where the answer begins."""

    ids: list[int]
    start: int


def as_text(document: Document, rng: random.Random) -> str:
    """Write a document as the members read it, a question and answer in the chat template's form."""
    if isinstance(document, str):
        return f"{BOS}{document}{EOS}"
    first, *others = document.turns if isinstance(document, Dialogue) else (document,)
    texts = [f"{_prompt(first, rng)}{first.answer}{EOS}"]
    # Only the first turn begins a document.
    texts += [f"{chat_prompt(turn.question).removeprefix(BOS)}{turn.answer}{EOS}" for turn in others]
    return "".join(texts)


def _prompt(example: Example, rng: random.Random) -> str:
    prompt = chat_prompt(example.question)
    if rng.random() < SYSTEM_SHARE:
        return prompt.replace(BOS, f"{BOS}{ROLES[0]}{SYSTEM_PROMPT}{EOS}", 1)
    return prompt


def mixture(
    sources: Mapping[str, Iterator[Document]],
    shares: Mapping[str, float],
    tokens: int,
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
) -> Tensor:
    """Pack documents of all sources in random order until there are that many ids, shared out by token count.

    Returns:
        [tokens] int32 ids.
    """
    documents: list[list[int]] = []
    for name, source in sources.items():
        due = round(tokens * shares[name] / sum(shares.values()))
        while due > 0:
            texts = [as_text(document, rng) for document in islice(source, CHUNK)]
            for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
                if due > 0:
                    documents.append(ids)
                    due -= len(ids)
    rng.shuffle(documents)
    packed = torch.tensor([token for ids in documents for token in ids], dtype=torch.int32)
    return packed[:tokens]


def answered(
    examples: Iterator[Example], tokens: int, longest: int, tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> list[Answered]:
    """Tokenize examples until there are that many ids; one longer than `longest` is left out."""
    found: list[Answered] = []
    while tokens > 0:
        chunk = [(_prompt(example, rng), example.answer) for example in islice(examples, CHUNK)]
        prompts = tokenizer([prompt for prompt, _ in chunk], add_special_tokens=False)["input_ids"]
        answers = tokenizer([answer + EOS for _, answer in chunk], add_special_tokens=False)["input_ids"]
        for prompt, answer in zip(prompts, answers, strict=True):
            if len(prompt) + len(answer) <= longest:
                found.append(Answered(prompt + answer, len(prompt)))
                tokens -= len(prompt) + len(answer)
    return found
