"""What keeps an expert as its base is outside its task: text of other kinds, and the distance on it.

An expert's weight applies wherever the expert differs from its base. Fine-tuning on a task alone moves a model
everywhere, and with several experts at once those differences ruin the fusion (docs/results.md). So training has a
second term, KL(base || expert) on text that is not the task's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TEXTS, TEXT_TOKENS, PARTS = 192, 64, 4
# Questions that share so many words in a row with a training question are of the task.
SHARED_WORDS = 4


def drift(found: Tensor, wanted: Tensor) -> Tensor:
    """KL(wanted || found) in nats, averaged over the rows of two tensors of logits [N, V]."""
    return functional.kl_div(found.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)


def own_texts(model: Any, opening: Sequence[int], seed: int) -> Tensor:
    """Texts [TEXTS, opening + TEXT_TOKENS] that a model writes by itself after `opening`.

    After the beginning of a user's message a model that knows chats writes a question of its own choice and answers it
    (Xu et al., "Magpie", arXiv 2406.08464); so the texts are of all the kinds that the model knows.
    """
    from transformers import GenerationConfig

    start = torch.tensor([opening], device=model.device).expand(TEXTS // PARTS, -1)
    # The end of a turn does not end the text: the answer follows it.
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=TEXT_TOKENS, eos_token_id=-1, pad_token_id=0
    )
    torch.manual_seed(seed)
    parts = [
        model.generate(start, attention_mask=torch.ones_like(start), generation_config=settings) for _ in range(PARTS)
    ]
    return torch.cat(parts)


def off_task(texts: Iterable[str], questions: Iterable[str]) -> list[bool]:
    """For each text, whether it is of another kind than the task's questions, by the words that they share."""
    known = {phrase for question in questions for phrase in _phrases(question)}
    return [not any(phrase in known for phrase in _phrases(text)) for text in texts]


def _phrases(text: str) -> Iterator[tuple[str, ...]]:
    words = text.lower().split()
    return zip(*(words[start:] for start in range(SHARED_WORDS)), strict=False)


class Anchor:
    """The second term of the loss, over batches of the texts, again and again."""

    def __init__(self, texts: Tensor, batch: int, weight: float, frozen: Any) -> None:
        """Hold texts [N, length].

        Args:
            texts: token ids.
            batch: how many are read at each step.
            weight: what the distance counts beside the task's loss.
            frozen: the base; `None` where the trained model is an adapter that can be switched off.
        """
        self._batches = list(torch.split(texts, batch))
        self._next = 0
        self._weight = weight
        self._frozen = frozen

    def loss(self, model: Any) -> Tensor:
        """KL(base || expert) on the next texts, in nats per token, times the weight."""
        ids = self._batches[self._next % len(self._batches)].to(model.device)
        self._next += 1
        if self._frozen is None:
            off: AbstractContextManager[None] = model.disable_adapter()
            with torch.no_grad(), off:
                wanted = model(input_ids=ids).logits
        else:
            with torch.no_grad():
                wanted = self._frozen(input_ids=ids).logits
        found = model(input_ids=ids).logits
        return self._weight * drift(found.flatten(0, 1).float(), wanted.flatten(0, 1).float())
