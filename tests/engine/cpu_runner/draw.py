"""Random inputs of a launch, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SLOTS = 9
MAX_MODEL_LEN = 80
MAX_TOKENS = 100
VOCABULARIES = [40, 1000, 2048, 4099, 9000]
LARGE_VOCABULARY = 131_072


@dataclass
class Launch:
    """One launch of a kernel: its grid, arguments and constants, and which tensors it writes."""

    grid: tuple[int, ...]
    args: list[Any]
    results: list[Tensor]
    constants: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 0.0


LAUNCHES: dict[str, Callable[[Draw], Launch]] = {}


def launches(kernel: str) -> Callable[[Callable[[Draw], Launch]], Callable[[Draw], Launch]]:
    """Name the kernel whose launches a function draws."""

    def keep(function: Callable[[Draw], Launch]) -> Callable[[Draw], Launch]:
        LAUNCHES[kernel] = function
        return function

    return keep


class Draw:
    """Draws a batch: B requests in some of the slots, each with tokens in this step and some of them with drafts."""

    def __init__(self, seed: int, vocabulary: int | None = None) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.seed = seed
        # Tensors of which a launch has the addresses alone.
        self.kept: list[Tensor] = []
        self.vocabulary = vocabulary or VOCABULARIES[seed % len(VOCABULARIES)]
        self.dtype = [torch.float32, torch.bfloat16][seed // len(VOCABULARIES) % 2]
        requests = [0, 1, 3, 6][self.whole(0, 4)] if vocabulary is None else 2
        self.slots = torch.randperm(SLOTS, generator=self.generator)[:requests]
        self.lengths = self.ints(1, 9, requests)
        self.query_start_loc = self.starts(self.lengths, SLOTS + 1)
        self.tokens = int(self.lengths.sum())
        self.computed = self.ints(0, 30, SLOTS)
        self.prefill = self.ints(1, 40, SLOTS)
        self.prompt = torch.minimum(self.prefill, self.ints(1, 40, SLOTS))
        self.total = torch.maximum(self.prefill, self.computed + 1)
        self.all_token_ids = self.ints(0, self.vocabulary, SLOTS, MAX_MODEL_LEN)
        self.seq_lens = self.computed[self.slots] + self.lengths
        self.rows_each = torch.minimum(self.lengths, self.ints(1, 5, requests))
        self.cu_num_logits = self.starts(self.rows_each, requests + 1)
        self.rows = int(self.rows_each.sum())
        self.row_slots = torch.repeat_interleave(self.slots, self.rows_each.long())
        places = [torch.arange(int(number), dtype=torch.int32) for number in self.rows_each]
        self.places = torch.cat([torch.zeros(0, dtype=torch.int32), *places])

    @property
    def requests(self) -> int:
        return self.slots.numel()

    def whole(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=self.generator))

    def ints(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator, dtype=dtype)

    def longs(self, low: int, high: int, *shape: int) -> Tensor:
        return self.ints(low, high, *shape, dtype=torch.int64)

    def reals(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float32)

    def sometimes(self, value: float, otherwise: Tensor) -> Tensor:
        """`value` in a third of the places."""
        return torch.where(self.ints(0, 3, *otherwise.shape) == 0, value, otherwise)

    def temperatures(self, slots: int = SLOTS) -> Tensor:
        return self.sometimes(0.0, self.sometimes(1.0, self.reals(slots) * 1.5 + 0.1))

    def logits(self, rows: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Rows of logits, in half of the draws a slice of wider ones; one in a hundred is -inf."""
        rows = self.rows if rows is None else rows
        width = self.vocabulary + self.whole(0, 2) * 64
        values = torch.randn(rows, width, generator=self.generator, dtype=torch.float32) * 4
        values[torch.rand(rows, width, generator=self.generator, dtype=torch.float32) < 0.01] = -torch.inf
        return values.to(dtype or self.dtype)[:, : self.vocabulary]

    def distinct(self, number: int) -> Tensor:
        """[SLOTS, number] distinct tokens a row, or fewer where the vocabulary is smaller."""
        number = min(number, self.vocabulary)
        rows = [torch.randperm(self.vocabulary, generator=self.generator)[:number] for _ in range(SLOTS)]
        return torch.stack(rows).int()

    def with_gaps(self) -> Tensor:
        """The slots, one of them -1."""
        slots = self.slots.clone()
        slots[: self.seed % 2] = -1
        return slots

    def with_gap_rows(self) -> Tensor:
        """The slots of the rows, one of them -1."""
        slots = self.row_slots.clone()
        slots[: self.seed % 2] = -1
        return slots

    @staticmethod
    def starts(lengths: Tensor, size: int) -> Tensor:
        """Where each begins, and after the last for all the rest of `size`."""
        out = torch.full((size,), int(lengths.sum()), dtype=torch.int32)
        out[0] = 0
        out[1 : lengths.numel() + 1] = lengths.cumsum(0)
        return out

    @staticmethod
    def addresses(tensors: list[Tensor]) -> Tensor:
        return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.uint64)


def blocks(size: int, block: int) -> int:
    return -(-size // block)
