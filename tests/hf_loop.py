"""The independent oracle of the whole server: Hugging Face models in a plain loop, fused by the float64 reference.

No cache, no batching, nothing shared with the engine but the weights on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from fusion_kernels import Fused, Weighting, fuse_logits
from tests.models import load_model


@dataclass(frozen=True)
class Settings:
    """What a request's `fusion` field asks, by name."""

    weighting: str
    experts: tuple[str, ...] = ()
    alpha: tuple[float, ...] = ()
    alpha_max: float = 2.0
    prompts: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    """(expert, `with` or `against`, token ids) of the members that read a prompt of their own."""

    def field(self, trace: bool = False) -> dict[str, Any]:
        """The `fusion` field that asks for it."""
        field: dict[str, Any] = {"weighting": self.weighting, "alpha_max": self.alpha_max, "trace": trace}
        if self.experts:
            field["experts"] = list(self.experts)
        if self.alpha:
            field["alpha"] = dict(zip(self.experts, self.alpha, strict=True))
        return field


class HFLoop:
    """A family of members in one folder: `large`, `base` and the experts by name; `settings` change their config."""

    def __init__(self, folder: Path, experts: Sequence[str], **settings: Any) -> None:
        self.experts = list(experts)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder / "large")
        # With its other attention, Hugging Face leaves out the soft cap that Gemma 2 puts on attention's logits.
        self._members: list[Any] = [
            load_model(folder / name, dtype=torch.float32, attn_implementation="eager", **settings)
            for name in ("large", "base", *experts)
        ]

    def modules(self) -> Iterator[Any]:
        """Those of all members."""
        return (module for member in self._members for module in member.modules())

    def fuse(self, token_ids: Sequence[int], settings: Settings, positions: slice) -> Fused:
        """The fusion at `positions` of a text, all members reading it from its start.

        A member reads an id past its own vocabulary, which only padding has, as its last one.
        """
        return self._fuse([logits[0, positions] for logits in self._read([token_ids])], settings)

    def next(self, texts: Sequence[Sequence[int]], settings: Settings) -> Fused:
        """The fusion after each of several texts of one length, one row a text."""
        return self._fuse([logits[:, -1] for logits in self._read(texts)], settings)

    def _read(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Each member's logits [texts, positions, ids]."""
        ids = torch.tensor([list(text) for text in texts])
        with torch.no_grad():
            return [
                member(ids.clamp(max=member.config.get_text_config().vocab_size - 1)).logits for member in self._members
            ]

    def _fuse(self, logits: Sequence[torch.Tensor], settings: Settings) -> Fused:
        rows = len(logits[0])
        use = torch.zeros(rows, len(self.experts), dtype=torch.bool)
        alpha = torch.zeros(rows, len(self.experts))
        for place, name in enumerate(settings.experts):
            use[:, self.experts.index(name)] = True
            if settings.alpha:
                alpha[:, self.experts.index(name)] = settings.alpha[place]
        kind = Weighting.named(settings.weighting)
        return fuse_logits(
            logits[0],
            logits[1],
            logits[2:],
            kind=torch.full((rows,), int(kind), dtype=torch.int8),
            use=use,
            alpha=alpha,
            alpha_max=torch.full((rows,), settings.alpha_max),
            impl="reference",
        )

    def greedy(self, prompt: Sequence[int], settings: Settings, max_tokens: int) -> tuple[list[int], Fused]:
        """Greedy continuation of a prompt, and the fusion that chose each of its tokens, one row a token."""
        token_ids, steps = list(prompt), []
        for _ in range(max_tokens):
            steps.append(self.fuse(token_ids, settings, slice(-1, None)))
            token_ids.append(int(steps[-1].logits[0].argmax()))
        return token_ids[len(prompt) :], Fused(*(torch.cat(parts) for parts in zip(*steps, strict=True)))

    def base_along(self, prompt: Sequence[int], generated: Sequence[int]) -> torch.Tensor:
        """The base's own logits, from which none of the `generated` tokens was drawn, one row a token."""
        return self._read([[*prompt, *generated][:-1]])[1][0, len(prompt) - 1 :]

    def along(self, prompt: Sequence[int], generated: Sequence[int], settings: Settings) -> Fused:
        """The fusion from which each of the `generated` tokens was drawn, one row a token."""
        first = len(prompt) - 1
        return self.fuse([*prompt, *generated][:-1], settings, slice(first, None))
