"""Counts over all generated tokens, by preset: how many, with which weights, how far moved, how often a member broke.

`Aggregates.record` runs in the decode path, so it only keeps what the step has computed anyway, on its device, and
folds it into counters there before it piles up. `Aggregates.read`, which the API calls between steps now and then,
brings the counters to the host; nothing else waits for the device. Counters only grow, so a reading that gets lost
costs nothing. Which rows give a new token, and whose they are, is known on the host before the step runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
from vllm.utils import torch_utils

from fusion_kernels import Weighting
from fusion_kernels.batch import expert_of

if TYPE_CHECKING:
    from fusion_kernels import Fused
    from server.engine.slots import SlotTable
    from server.engine.speculation.outcome import Outcome
    from server.engine.step import Step

ALPHA_BUCKETS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 4.0)
KL_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # nats
"""Upper bounds, inclusive; one more bucket holds what lies above the last."""

# Steps are folded when somebody asks, or this many at a time, so that they cannot pile up.
MAX_PENDING_STEPS = 256
# The newest steps wait: with asynchronous scheduling, a row of theirs may turn out to be one too many.
KEPT_STEPS = 2

_FUSING = tuple(weighting for weighting in Weighting if weighting.fuses)
"""Weightings that move the large model's distribution; the others have no divergence to tell."""


class Counts(TypedDict):
    """The counters, as they travel from the worker: P presets, T experts."""

    tokens: list[list[int]]  # [P, weightings]: generated tokens, by `Weighting`
    broken: list[
        list[list[int]]
    ]  # [P, T, 2]: tokens that fell back: the expert was broken, or what it is compared with
    alpha: list[list[list[int]]]  # [P, T, buckets]: tokens by weight, of those that used the expert
    alpha_sum: list[list[float]]  # [P, T]
    kl: list[list[list[int]]]  # [P, 2, buckets]: by KL(fused || large) and KL(large || fused)
    kl_sum: list[list[float]]  # [P, 2]
    drafts: list[list[list[int]]]  # [P, K, 2]: tokens drafted at each place and verified, and those accepted
    ahead: list[int]  # [K + 1]: steps that drafted so many tokens ahead


@dataclass(frozen=True, slots=True)
class _Fusion:
    """What came of fusing a step's N rows over E experts."""

    experts: tuple[int, ...]
    use: torch.Tensor  # [N, E]
    alpha: torch.Tensor  # [N, E]
    kl: torch.Tensor  # [N, 2]
    broken: torch.Tensor  # [N]


@dataclass(frozen=True, slots=True)
class _Drafts:
    """What became of a step's drafts, by its B requests and N rows."""

    presets: np.ndarray  # [B]
    proposed: np.ndarray  # [B]
    accepted: torch.Tensor  # [B], of those that the client gets
    rows_delivered: torch.Tensor  # [N] bool


@dataclass(slots=True)
class _Step:
    slots: np.ndarray  # [N]
    labels: np.ndarray  # [N], see `SlotTable.labels`
    generates: np.ndarray  # [N] bool
    fusion: _Fusion | None
    drafts: _Drafts | None = None


class Aggregates:
    """The counters of one worker, filled by the composite model."""

    def __init__(self, table: SlotTable, presets: int, draft_tokens: int = 0) -> None:
        self._table = table
        self._presets = presets
        experts, device = table.num_experts, table.device
        self._pending: list[_Step] = []
        self._tokens = np.zeros(presets * len(Weighting), dtype=np.int64)
        self._drafts = np.zeros((presets, draft_tokens, 2), dtype=np.int64)
        self._ahead = np.zeros(1 + draft_tokens, dtype=np.int64)
        # By slot: tokens that its request may still get, and those that it has got there.
        self._left = np.zeros(len(table.slots), dtype=np.int64)
        self._rows = np.zeros(len(table.slots), dtype=np.int64)
        # Whoever loads a model makes its dtype and device the default ones.
        whole, real = {"dtype": torch.int64, "device": device}, {"dtype": torch.float64, "device": device}
        self._broken = torch.zeros(presets, experts, 2, **whole)  # type: ignore[call-overload]
        self._alpha = torch.zeros(presets, experts, len(ALPHA_BUCKETS) + 1, **whole)  # type: ignore[call-overload]
        self._alpha_sum = torch.zeros(presets, experts, **real)  # type: ignore[call-overload]
        self._kl = torch.zeros(presets, 2, len(KL_BUCKETS) + 1, **whole)  # type: ignore[call-overload]
        self._kl_sum = torch.zeros(presets, 2, **real)  # type: ignore[call-overload]
        self._alpha_bounds = torch.tensor(ALPHA_BUCKETS, dtype=torch.float32, device=device)
        self._kl_bounds = torch.tensor(KL_BUCKETS, dtype=torch.float32, device=device)

    def begin(self, slot: int, tokens: int) -> None:
        """A request enters a slot, and may get so many tokens there at most."""
        self._left[slot], self._rows[slot] = tokens, 0

    def reached_limit(self, slot: int) -> bool:
        """Whether the request in a slot has had as many tokens as it may get."""
        return bool(self._left[slot] <= 0)

    def retract(self, slot: int) -> None:
        """Take back the newest row of a slot's present request, whose token nobody gets; it may have none yet."""
        if not self._rows[slot]:
            return
        for step in reversed(self._pending):
            rows = np.flatnonzero((step.slots == slot) & step.generates)
            if len(rows):
                step.generates[rows[-1]] = False
                return

    def record(self, step: Step, use: torch.Tensor | None, fused: Fused | None, experts: list[int]) -> None:
        """Note the rows of a step: which of `experts` each used [N, E] and what came of it; `None` where none fused."""
        fusion = None
        if fused is not None and use is not None:
            fusion = _Fusion(tuple(experts), use, fused.alpha, fused.kl_fused, fused.broken)
        slots = step.slots[step.generates]
        np.subtract.at(self._left, slots, 1)
        np.add.at(self._rows, slots, 1)
        self._pending.append(_Step(step.slots, self._table.labels[step.slots], step.generates, fusion))
        if len(self._pending) >= MAX_PENDING_STEPS:
            self._fold(KEPT_STEPS)

    def drafted(self, ahead: int) -> None:
        """Count a step that drafts so many tokens ahead; 0: it might have."""
        self._ahead[ahead] += 1

    def settle(self, outcome: Outcome) -> None:
        """Note what became of the drafts of the step that was recorded last."""
        if not self._pending:  # it was recorded before the counters were made new
            return
        presets = self._table.labels[outcome.batch.idx_mapping_np] // len(Weighting)
        self._pending[-1].drafts = _Drafts(presets, outcome.proposed, outcome.accepted, outcome.rows_delivered)

    def forget(self, preset: int, expert: int) -> None:
        """Count anew for an expert, and a preset, that are others from now on."""
        self._fold(0)
        for by_expert in (self._broken, self._alpha, self._alpha_sum):
            by_expert[:, expert] = 0
            by_expert[preset] = 0
        for by_preset in (self._kl, self._kl_sum):
            by_preset[preset] = 0
        self._drafts[preset] = 0
        self._tokens.reshape(self._presets, len(Weighting))[preset] = 0

    def read(self) -> Counts:
        """All counters since the start; of the newest steps, while requests run, only at the next reading."""
        self._fold(KEPT_STEPS if self._table.occupied else 0)
        return {
            "tokens": self._tokens.reshape(self._presets, len(Weighting)).tolist(),
            "broken": self._broken.tolist(),
            "alpha": self._alpha.tolist(),
            "alpha_sum": self._alpha_sum.tolist(),
            "kl": self._kl.tolist(),
            "kl_sum": self._kl_sum.tolist(),
            "drafts": self._drafts.tolist(),
            "ahead": self._ahead.tolist(),
        }

    def _fold(self, kept: int) -> None:
        whole = len(self._pending) - kept
        if whole <= 0:
            return
        steps, self._pending = self._pending[:whole], self._pending[whole:]
        for step in steps:
            self._count_drafts(step)
        labels = np.concatenate([step.labels[step.generates] for step in steps])
        self._tokens += np.bincount(labels, minlength=len(self._tokens))
        fusions = [(step, step.fusion) for step in steps if step.fusion is not None]
        # In any order: sums have none, and fewer groups are fewer launches.
        fusions.sort(key=lambda pair: pair[1].experts)
        for experts, group in groupby(fusions, key=lambda pair: pair[1].experts):
            self._fold_alike(list(group), experts)

    def _count_drafts(self, step: _Step) -> None:
        """Take the rows of a step out that gave nobody a token, and count its drafts."""
        drafts = step.drafts
        if drafts is None:
            return
        # The step is over by now, so nothing waits for these copies.
        step.generates &= drafts.rows_delivered.cpu().numpy()
        for column, numbers in enumerate((drafts.proposed, drafts.accepted.cpu().numpy())):
            for place in range(self._drafts.shape[1]):
                self._drafts[:, place, column] += np.bincount(drafts.presets[numbers > place], minlength=self._presets)

    def _fold_alike(self, steps: list[tuple[_Step, _Fusion]], experts: tuple[int, ...]) -> None:
        """Fold steps over the same experts."""
        use, alpha, kl, broken = (
            torch.cat([getattr(fusion, name) for _, fusion in steps]) for name in ("use", "alpha", "kl", "broken")
        )
        device = alpha.device
        labels, generated = (
            torch_utils.async_tensor_h2d(np.concatenate([getattr(step, name) for step, _ in steps]), device=device)
            for name in ("labels", "generates")
        )
        preset, kind = labels // len(Weighting), labels % len(Weighting)
        indices = torch_utils.async_tensor_h2d(np.array(experts, dtype=np.int64), device=device)
        fell_back = broken != 0
        expert = indices[torch.where(fell_back, expert_of(broken), 0).long()]
        _add(self._broken, (preset, expert, (broken < 0).long()), generated & fell_back)

        sound = generated & ~fell_back
        chosen = (preset[:, None], indices[None, :].expand_as(alpha))
        used = use & sound[:, None]
        _add(self._alpha, (*chosen, torch.bucketize(alpha, self._alpha_bounds)), used)
        _add(self._alpha_sum, chosen, torch.where(used, alpha, 0.0))

        weighed = torch.zeros_like(sound)
        for weighting in _FUSING:
            weighed |= kind == int(weighting)
        directions = (preset[:, None], torch.arange(2, device=device)[None, :].expand_as(kl))
        moved = (weighed & sound)[:, None].expand_as(kl)
        _add(self._kl, (*directions, torch.bucketize(kl, self._kl_bounds)), moved)
        _add(self._kl_sum, directions, torch.where(moved, kl, 0.0))


def _add(table: torch.Tensor, index: tuple[torch.Tensor, ...], values: torch.Tensor) -> None:
    """table[index] += values, with repeated indices added up; all of `index` broadcast to the shape of `values`."""
    table.index_put_(index, values.to(table.dtype), accumulate=True)
