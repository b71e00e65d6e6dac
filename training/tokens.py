"""Examples as token ids, exactly as a server has them: the prompt by the chat template, then the answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.errors import ConfigError
from training.data import Example


@dataclass(frozen=True)
class Tokens:
    """A conversation as token ids; what is learned begins at `start`."""

    ids: list[int]
    start: int


class ChatTokenizer:
    """The large model's tokenizer and chat template: what a server feeds to every member."""

    def __init__(self, folder: Path, context: int) -> None:
        """Read them from the large model's folder; `context` is the most tokens that an example may have.

        Raises:
            ConfigError: the tokenizer has no end token.
        """
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._context = context
        if self.tokenizer.eos_token is None:
            raise ConfigError(f"{folder}: its tokenizer has no end token (eos_token), so no answer would end")

    def encode(self, examples: Iterable[Example]) -> list[Tokens]:
        """Return each example's tokens.

        Raises:
            ConfigError: one is longer than the context.
        """
        found = []
        for example in examples:
            prompt, answer = self._texts(example)
            # What a tokenizer puts around plain text by itself, a chat template writes out.
            prompt_ids, answer_ids = self._ids(prompt, around=not self.chats), self._ids(answer)
            if len(prompt_ids) + len(answer_ids) > self._context:
                raise ConfigError(
                    f"{example.file}:{example.line}: prompt and answer have {len(prompt_ids):,} and "
                    f"{len(answer_ids):,} tokens; the members read {self._context:,} in all (engine.max_model_len)"
                )
            found.append(Tokens(prompt_ids + answer_ids, len(prompt_ids)))
        return found

    @property
    def chats(self) -> bool:
        """Whether there is a chat template; else prompts are plain text, as for `/v1/completions`."""
        return bool(self.tokenizer.chat_template)

    @property
    def opening(self) -> list[int]:
        """What stands before a user's first words; a beginning of text at least."""
        mark = "a user's first words"
        text = self._rendered([{"role": "user", "content": mark}], False).partition(mark)[0] if self.chats else ""
        return self._ids(text, around=not self.chats) or [self.tokenizer.eos_token_id]

    def _texts(self, example: Example) -> tuple[str, str]:
        """The prompt, and what the model is to say after it, its end token included."""
        end: str = self.tokenizer.eos_token
        if not self.chats:
            text = "\n\n".join(turn["content"] for turn in example.turns)
            space = "" if text[-1:].isspace() or example.answer[:1].isspace() else " "
            return text, space + example.answer + end
        turns = list(example.turns)
        prompt = self._rendered(turns, True)
        whole = self._rendered([*turns, {"role": "assistant", "content": example.answer}], False)
        if not whole.startswith(prompt):
            # Some templates write a last answer otherwise than they would have it begun.
            return prompt, example.answer + end
        said = whole.removeprefix(prompt)
        last = said.rfind(end)
        # Behind the end token, where nobody asks the model any more, templates write a line break.
        return prompt, said + end if last < 0 else said[: last + len(end)]

    def _rendered(self, turns: list[dict[str, str]], begin_answer: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begin_answer)
        return text

    def _ids(self, text: str, around: bool = False) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=around)["input_ids"]
        return ids
