"""The oracle of members that read prompts of their own: each one in a plain loop, from its own prompt's start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from fusion_kernels import Fused, Weighting, fuse_logits
from server.engine.settings import SIDES
from tests.hf_loop import Settings
from tests.models import load_model


class PairLoop:
    """Models in the folders of one folder, and of each expert the names of those on its two sides (`None`: nothing)."""

    def __init__(self, folder: Path, pairs: Mapping[str, tuple[str, str | None]]) -> None:
        self.experts = list(pairs)
        self._pairs = pairs
        names = {"large", *(name for pair in pairs.values() for name in pair if name is not None)}
        self._models = {
            name: load_model(folder / name, dtype=torch.float32, attn_implementation="eager") for name in names
        }

    def along(self, prompt: Sequence[int], generated: Sequence[int], settings: Settings) -> Fused:
        """The fusion from which each of the `generated` tokens was drawn, one row a token."""
        own = {(name, side): ids for name, side, ids in settings.prompts}

        def read(model: str, expert: str, side: str) -> torch.Tensor:
            start = own.get((expert, side), prompt)
            return self._read(model, [*start, *generated][:-1])[len(start) - 1 :]

        return self._fuse(read, settings)

    def greedy(self, prompt: Sequence[int], settings: Settings, max_tokens: int) -> list[int]:
        """The likeliest continuation of a prompt."""
        tokens: list[int] = []
        for _ in range(max_tokens):
            tokens.append(int(self.along(prompt, [*tokens, 0], settings).logits[-1].argmax()))
        return tokens

    def fuse(self, token_ids: Sequence[int], settings: Settings, positions: slice) -> Fused:
        """The fusion at `positions` of a text that all members read."""
        return self._fuse(lambda model, expert, side: self._read(model, token_ids)[positions], settings)

    def member(self, model: str, prompt: Sequence[int], generated: Sequence[int]) -> torch.Tensor:
        """One model's logits at the places of the `generated` tokens, one row a token."""
        return self._read(model, [*prompt, *generated][:-1])[len(prompt) - 1 :]

    def _fuse(self, read: Callable[[str, str, str], torch.Tensor], settings: Settings) -> Fused:
        large = read("large", "", "")
        sides: dict[str, list[torch.Tensor]] = {side: [] for side in SIDES}
        for expert, pair in self._pairs.items():
            for side, name in zip(SIDES, pair, strict=True):
                unread = name is None or expert not in settings.experts
                sides[side].append(torch.zeros_like(large) if unread or name is None else read(name, expert, side))
        rows = len(large)
        use, alpha = torch.zeros(rows, len(self.experts), dtype=torch.bool), torch.zeros(rows, len(self.experts))
        for place, expert in enumerate(settings.experts):
            use[:, self.experts.index(expert)] = True
            if settings.alpha:
                alpha[:, self.experts.index(expert)] = settings.alpha[place]
        return fuse_logits(
            large,
            sides["against"],
            sides["with"],
            kind=torch.full((rows,), int(Weighting.named(settings.weighting)), dtype=torch.int8),
            use=use,
            alpha=alpha,
            alpha_max=torch.full((rows,), settings.alpha_max),
            impl="reference",
        )

    def _read(self, model: str, token_ids: Sequence[int]) -> torch.Tensor:
        """A model's logits [len(token_ids), V]."""
        with torch.no_grad():
            logits: torch.Tensor = self._models[model](torch.tensor([list(token_ids)])).logits[0]
        return logits
