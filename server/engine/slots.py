"""What each request slot of the model runner asks of the fusion: one owner, on the host and on the device.

vLLM's Model Runner V2 gives a running request a slot, an index from 0 to `max_num_seqs` - 1, from its arrival to its
end or preemption. Everything that a forward pass must know of a request is kept here by that index: on the host, where
the step is planned, and in tensors on the device, from which rows gather their settings without waiting.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
import torch

from fusion_kernels import Weighting
from server.engine.own_prompts import Alignment
from server.engine.settings import ANY, FusionSettings


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One request (one of its choices) for as long as it stays in its slot."""

    settings: FusionSettings
    num_prompt_tokens: int
    generated: list[int] = field(default_factory=list)
    """Tokens that it had generated before it came to the slot: it was preempted."""
    prompt: list[int] = field(default_factory=list)
    """Of a request that is routed, all that it must have read before: its prompt, and what it had generated."""
    prompt_logprobs: bool = False
    """Whether the logits of its prompt's positions are asked for too."""
    serial: int = field(default_factory=count().__next__)
    """Tells slots apart, also those of one request that was preempted and came back."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The settings of `compute_logits` rows: the arguments that `fuse_logits` wants beside the logits."""

    kind: torch.Tensor  # [N] int8
    use: torch.Tensor  # [N, T] bool
    alpha: torch.Tensor  # [N, T] float32
    alpha_max: torch.Tensor  # [N] float32

    def of_experts(self, experts: list[int]) -> Rows:
        """The same rows over some of the experts, in rising order."""
        if len(experts) == self.use.shape[1]:
            return self
        return Rows(
            self.kind,
            torch.stack([self.use[:, expert] for expert in experts], dim=1),
            torch.stack([self.alpha[:, expert] for expert in experts], dim=1),
            self.alpha_max,
        )


class SlotTable:
    """The settings of the running requests by slot."""

    def __init__(self, max_num_seqs: int, num_experts: int, device: torch.device, most_parts: int = 0) -> None:
        self.slots: list[Slot | None] = [None] * max_num_seqs
        self.num_experts = num_experts
        self.device = device
        members = 1 + 2 * num_experts
        self.members_run = np.zeros((max_num_seqs, members), dtype=bool)
        """[slots, 1 + 2 T]: whether the slot's request runs each of the small members, by their numbers."""
        self.own_prompt = np.zeros((max_num_seqs, members), dtype=bool)
        """[slots, 1 + 2 T]: whether the member reads a prompt of its own for the slot's request."""
        self.alignments = np.zeros((max_num_seqs, members, 2), dtype=np.int64)
        """[slots, 1 + 2 T, 2]: `shift` and `start` of those members, zeros of the others."""
        self.sequences: dict[tuple[int, int], np.ndarray] = {}
        """By slot and member: the member's own prompt, and what had been generated before."""
        self.undecided = np.zeros(max_num_seqs, dtype=bool)
        """[slots]: nobody has chosen yet which experts steer the slot's request."""
        self.from_start = np.zeros((max_num_seqs, members), dtype=bool)
        """[slots, 1 + 2 T]: the member reads the request's whole prompt in this step: it was chosen in it."""
        self.shares = np.zeros((max_num_seqs, num_experts, most_parts), dtype=np.float32)
        """[slots, T, P]: of experts that are mixtures, the share of each part (`server.engine.mixture`)."""
        self.begun = np.zeros(max_num_seqs, dtype=bool)
        """[slots]: the slot's request has had a step."""
        self.pairs = np.full((max_num_seqs, num_experts, 2), ANY, dtype=np.int64)
        """[slots, T, 2]: the members of each expert's pair, `ANY` where nobody looks at them."""
        self.drafter = np.full(max_num_seqs, -1, dtype=np.int64)
        """[slots]: the number of the member that drafts for the slot's request; -1 for none."""
        self.labels = np.zeros(max_num_seqs, dtype=np.int64)
        """[slots]: preset * number of weightings + weighting, under which the metrics count."""
        self.occupied = 0
        """Running requests."""
        self.traced = 0
        """Running requests whose trace is kept."""
        self._host = Rows(
            # Whoever loads a model makes its dtype and device the default ones.
            kind=torch.zeros(max_num_seqs, dtype=torch.int8, device="cpu"),
            use=torch.zeros(max_num_seqs, num_experts, dtype=torch.bool, device="cpu"),
            alpha=torch.zeros(max_num_seqs, num_experts, dtype=torch.float32, device="cpu"),
            alpha_max=torch.zeros(max_num_seqs, dtype=torch.float32, device="cpu"),
        )
        self._on_device = self._to_device()

    def add(self, index: int, slot: Slot, block_size: int = 1) -> None:
        """Put a request into a slot; `flush` makes its settings known to the device."""
        self.remove(index)
        self.slots[index] = slot
        self.occupied += 1
        self.traced += slot.settings.traced
        self.undecided[index] = slot.settings.route is not None
        self.shares[index] = 0.0
        self._share(index, slot.settings.shares)
        self._fill(index, slot.settings if slot.settings.route is None else slot.settings.of_experts(()))
        self.begun[index] = False
        self._add_prompts(index, slot, block_size)

    def decide(self, index: int, experts: Collection[int], shares: Mapping[int, Sequence[float]]) -> None:
        """It has been chosen which experts steer a request: their members read all of it in this step.

        `shares` are those of the parts, by expert. `flush` makes it known to the device.
        """
        slot = self.slots[index]
        assert slot is not None
        read = self.members_run[index].copy()
        settings = slot.settings.of_experts(experts)
        self._share(index, shares)
        self.slots[index] = replace(slot, settings=settings)
        self.undecided[index] = False
        self._fill(index, settings)
        late = self.members_run[index] & ~read
        self.from_start[index] = self.own_prompt[index] = late
        sequence = np.array(slot.prompt, dtype=np.int64)
        self.sequences |= {(index, int(member)): sequence for member in np.flatnonzero(late)}

    def end_step(self, slots: np.ndarray) -> None:
        """The requests in some slots have had a step."""
        self.begun[slots] = True
        for index in slots[self.from_start[slots].any(axis=1)]:
            for member in np.flatnonzero(self.from_start[index]):
                self.sequences.pop((int(index), int(member)), None)
            self.own_prompt[index] &= ~self.from_start[index]
            self.from_start[index] = False

    def _share(self, index: int, shares: Mapping[int, Sequence[float]]) -> None:
        for expert, of_parts in shares.items():
            self.shares[index, expert, : len(of_parts)] = of_parts

    def _fill(self, index: int, settings: FusionSettings) -> None:
        table = self._host
        self.labels[index] = settings.preset * len(Weighting) + int(settings.weighting)
        table.kind[index] = int(settings.weighting)
        table.alpha_max[index] = settings.alpha_max
        table.use[index] = False
        table.alpha[index] = 0.0
        for expert in settings.experts:
            table.use[index, expert] = True
        for expert, alpha in zip(settings.experts, settings.alpha, strict=False):
            table.alpha[index, expert] = alpha
        self.members_run[index] = False
        for member in settings.members_run:
            self.members_run[index, member] = True
        self.drafter[index] = -1 if settings.drafter is None else settings.drafter
        self.pairs[index] = ANY
        for expert, pair in zip(settings.experts, settings.sides, strict=True):
            self.pairs[index, expert] = pair

    def _add_prompts(self, index: int, slot: Slot, block_size: int) -> None:
        self.own_prompt[index], self.alignments[index] = False, 0
        for member, ids in slot.settings.prompts.items():
            alignment = Alignment.of(slot.num_prompt_tokens, len(ids), block_size)
            self.own_prompt[index, member] = True
            self.alignments[index, member] = alignment.shift, alignment.start
            self.sequences[index, member] = np.array([*ids, *slot.generated], dtype=np.int64)

    def remove(self, index: int) -> None:
        """Take a request out; its row on the device stays as it is until the slot is taken again."""
        slot, self.slots[index] = self.slots[index], None
        self.undecided[index] = self.from_start[index] = False
        if slot is not None:
            self.occupied -= 1
            self.traced -= slot.settings.traced
            for member in slot.settings.prompts:
                self.sequences.pop((index, member), None)

    def flush(self) -> None:
        """Bring what was added to the device, behind the work that is under way there."""
        self._on_device = self._to_device()

    def rows(self, slots: torch.Tensor) -> Rows:
        """The settings of rows, gathered by their slots [N] int64."""
        table = self._on_device
        return Rows(table.kind[slots], table.use[slots], table.alpha[slots], table.alpha_max[slots])

    def dearest_rows(self, num_rows: int) -> Rows:
        """The dearest settings there are, so that vLLM's memory profile counts what fusion can need."""
        shape = (num_rows, self.num_experts)
        return Rows(
            kind=torch.full((num_rows,), Weighting.KL, dtype=torch.int8, device=self.device),
            use=torch.ones(shape, dtype=torch.bool, device=self.device),
            alpha=torch.zeros(shape, dtype=torch.float32, device=self.device),
            alpha_max=torch.full((num_rows,), 2.0, dtype=torch.float32, device=self.device),
        )

    def _to_device(self) -> Rows:
        host = self._host
        if self.device.type == "cpu":
            return host
        # From fresh pinned copies: the next request may rewrite the table while these copies are still under way.
        kind, use, alpha, alpha_max = (
            t.pin_memory().to(self.device, non_blocking=True) for t in (host.kind, host.use, host.alpha, host.alpha_max)
        )
        return Rows(kind, use, alpha, alpha_max)
