"""Which request does this row of logits belong to, and what did that request ask for?

vLLM hands a model's `compute_logits` nothing but hidden states, and it slices them as it needs: the last position
of every request in a decode step, many positions of one request for prompt logprobs, several per request under
speculative decoding, random numbers that belong to nobody when it profiles. So row i is not request i. The contract
that holds all the same:

1. `FusionSettingsTracker`, a public vLLM logits processor, is told before every forward pass which request sits at
   which index of the persistent batch (added, removed, moved). `BatchState` keeps the settings by that index.
2. In `forward`, `BatchState.begin_step` keeps that step's `query_start_loc`, and every token's hidden state gets its
   own place in the step appended as two extra columns (`tags`; base-256 digits, exact in bfloat16 and float16).
3. In `compute_logits`, `BatchState.owners` reads the place back from whatever rows arrive, and `query_start_loc` tells
   which index of the batch owns that place.

Every value that changes between steps stays on the device, so nothing here waits for it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from fusion_kernels import Weighting
from server.engine.settings import EXTRA_ARG, FusionSettings

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

TAG_COLUMNS = 2
_TAG_BASE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One request (one of its choices) for as long as it stays in the persistent batch."""

    settings: FusionSettings
    num_prompt_tokens: int
    output_token_ids: list[int] = field(default_factory=list)
    """The engine's own list of the request's output, which grows while it stays."""
    num_output_tokens: int = 0
    """Tokens generated before this stay, that is, before the request was preempted."""
    serial: int = field(default_factory=count().__next__)
    """Tells slots apart, also those of one request that was preempted and came back."""

    @property
    def generated(self) -> int:
        """Tokens generated during this stay."""
        return len(self.output_token_ids) - self.num_output_tokens


@dataclass(frozen=True, slots=True)
class Rows:
    """The settings of `compute_logits` rows: the arguments that `fuse_logits` wants beside the logits."""

    kind: torch.Tensor  # [N] int8
    use: torch.Tensor  # [N, T] bool
    alpha: torch.Tensor  # [N, T] float32
    alpha_max: torch.Tensor  # [N] float32


class BatchState:
    """The settings of the running requests by batch index, and the token layout of the current step."""

    def __init__(
        self,
        max_num_seqs: int,
        max_num_tokens: int,
        num_experts: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if max_num_tokens > _TAG_BASE**TAG_COLUMNS:
            raise ValueError(
                f"max_num_batched_tokens is {max_num_tokens}; the composite model tells at most "
                f"{_TAG_BASE**TAG_COLUMNS} tokens of one step apart, so set it to that or less"
            )
        self.slots: list[Slot | None] = [None] * max_num_seqs
        self.num_experts = num_experts
        self.device = device
        self._host = Rows(
            # Whoever loads a model makes its dtype and device the default ones.
            kind=torch.zeros(max_num_seqs, dtype=torch.int8, device="cpu"),
            use=torch.zeros(max_num_seqs, num_experts, dtype=torch.bool, device="cpu"),
            alpha=torch.zeros(max_num_seqs, num_experts, dtype=torch.float32, device="cpu"),
            alpha_max=torch.zeros(max_num_seqs, dtype=torch.float32, device="cpu"),
        )
        self._host_labels = torch.zeros(max_num_seqs, 2, dtype=torch.int64, device="cpu")
        self._on_device, self._labels = self._to_device()
        places = torch.arange(max_num_tokens, device=device)
        self._tags = torch.stack((places // _TAG_BASE, places % _TAG_BASE), dim=1).to(dtype)
        self._digits = torch.tensor([_TAG_BASE, 1], dtype=torch.float32, device=device)
        self._left: Counter[tuple[int, Weighting]] = Counter()
        self._query_start_loc: torch.Tensor | None = None
        self.experts_in_use: list[int] = []
        """Experts that any running request fuses, in the configuration's order."""
        self.tracing = False
        """Whether any running request's trace is kept."""
        self.tracing_top = False
        """Whether any running request's trace shows the likeliest tokens."""
        self.input_ids = self.positions = torch.empty(0)

    def update(self, change: BatchUpdate) -> None:
        """Follow the persistent batch: removals, then additions, then moves, as vLLM orders them."""
        for index in change.removed:
            self._leave(index)
            self._set(index, None)
        for index, params, prompt_token_ids, output_token_ids in change.added:
            settings, known = FusionSettings.of(params), len(output_token_ids)
            self._leave(index)
            self._set(index, Slot(settings, len(prompt_token_ids or ()), output_token_ids, known))
        for source, target, direction in change.moved:
            moved, replaced = self.slots[source], self.slots[target]
            if direction != MoveDirectionality.SWAP:
                self._leave(target)
                replaced = None
            self._set(target, moved)
            self._set(source, replaced)
        running = [slot.settings for slot in self.slots if slot is not None]
        self.experts_in_use = sorted({expert for settings in running for expert in settings.experts})
        self.tracing = any(settings.traced for settings in running)
        self.tracing_top = any(settings.traced and settings.trace_top for settings in running)
        self._on_device, self._labels = self._to_device()

    def begin_step(
        self, query_start_loc: torch.Tensor | None, input_ids: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Keep the layout of this step; return the tags [num_tokens, 2], of the model's dtype, for the hidden states.

        `query_start_loc` [num_requests + 1] is the first token of each request; `None` when vLLM profiles, with
        tokens that belong to no request.
        """
        self._query_start_loc, self.input_ids, self.positions = query_start_loc, input_ids, positions
        return self._tags[: positions.shape[-1]]

    @property
    def profiling(self) -> bool:
        """Whether this step's tokens belong to no request."""
        return self._query_start_loc is None

    def places(self, tags: torch.Tensor) -> torch.Tensor:
        """Tags [N, 2] of any float dtype to the rows' token index in this step, [N] int64."""
        # Exact in float32, also where a matrix unit rounds its factors to bfloat16 or TF32.
        return tags.float().mv(self._digits).long()

    def owners(self, places: torch.Tensor) -> torch.Tensor:
        """Token indices [N] to the batch index that owns each, [N] int64; padding goes to the last request."""
        assert self._query_start_loc is not None
        ends = self._query_start_loc[1:]
        return torch.searchsorted(ends, places.to(ends.dtype), right=True).clamp_(max=ends.shape[0] - 1)

    def rows(self, owners: torch.Tensor) -> Rows:
        """The settings of each row, gathered by its owner [N]."""
        table = self._on_device
        return Rows(table.kind[owners], table.use[owners], table.alpha[owners], table.alpha_max[owners])

    def labels(self, owners: torch.Tensor) -> torch.Tensor:
        """What the metrics must know of each row, gathered by its owner [N]: [N, 2] int64.

        First preset * number of weightings + weighting, then the first position at which a row gives a new token.
        """
        return self._labels[owners]

    def profiling_rows(self, num_rows: int) -> Rows:
        """The dearest settings there are, so that vLLM's memory profile counts what fusion can need."""
        shape = (num_rows, self.num_experts)
        return Rows(
            kind=torch.full((num_rows,), Weighting.KL, dtype=torch.int8, device=self.device),
            use=torch.ones(shape, dtype=torch.bool, device=self.device),
            alpha=torch.zeros(shape, dtype=torch.float32, device=self.device),
            alpha_max=torch.full((num_rows,), 2.0, dtype=torch.float32, device=self.device),
        )

    def generated(self) -> Counter[tuple[int, Weighting]]:
        """Tokens generated since the start, by preset and weighting."""
        total = self._left.copy()
        for slot in self.slots:
            if slot is not None:
                total[slot.settings.preset, slot.settings.weighting] += slot.generated
        return total

    def _leave(self, index: int) -> None:
        slot = self.slots[index]
        if slot is not None:
            self._left[slot.settings.preset, slot.settings.weighting] += slot.generated

    def _set(self, index: int, slot: Slot | None) -> None:
        self.slots[index] = slot
        settings = FusionSettings() if slot is None else slot.settings
        known = 0 if slot is None else slot.num_prompt_tokens + slot.num_output_tokens
        self._host_labels[index, 0] = settings.preset * len(Weighting) + int(settings.weighting)
        self._host_labels[index, 1] = known - 1
        table = self._host
        table.kind[index] = int(settings.weighting)
        table.alpha_max[index] = settings.alpha_max
        table.use[index] = False
        table.alpha[index] = 0.0
        for expert in settings.experts:
            table.use[index, expert] = True
        for expert, alpha in zip(settings.experts, settings.alpha, strict=False):
            table.alpha[index, expert] = alpha

    def _to_device(self) -> tuple[Rows, torch.Tensor]:
        if self.device.type == "cpu":
            return self._host, self._host_labels
        host = self._host
        # From fresh pinned copies: the next update may rewrite the table while these copies are still under way.
        kind, use, alpha, alpha_max, labels = (
            t.pin_memory().to(self.device, non_blocking=True)
            for t in (host.kind, host.use, host.alpha, host.alpha_max, self._host_labels)
        )
        return Rows(kind, use, alpha, alpha_max), labels


_states: WeakValueDictionary[str, BatchState] = WeakValueDictionary()


def batch_state(vllm_config: VllmConfig) -> BatchState | None:
    """The state that the composite model and the logits processor of one engine share in a worker process.

    `None` where the engine's model is not the composite. The model runner makes its logits processors before it
    loads the model, so whoever asks first creates the state; both hold it, and it goes when they go.
    """
    fusion = getattr(vllm_config.model_config.hf_config, "fusion", None)
    if fusion is None:
        return None
    state = _states.get(vllm_config.instance_id)
    if state is None:
        dtype = vllm_config.model_config.dtype
        assert isinstance(dtype, torch.dtype)
        state = BatchState(
            vllm_config.scheduler_config.max_num_seqs,
            vllm_config.scheduler_config.max_num_batched_tokens,
            len(fusion["experts"]),
            torch.device(vllm_config.device_config.device or "cpu"),
            dtype,
        )
        _states[vllm_config.instance_id] = state
    return state


class FusionSettingsTracker(LogitsProcessor):
    """Listens to the persistent batch; it changes no logits itself (the composite model returns fused ones).

    Registered under the entry point group `vllm.logits_processors` rather than `--logits-processors`: vLLM 0.32 takes
    a processor named there to read the output tokens, and then waits for them in every step of async scheduling.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse settings that did not come through this server's API.

        Raises:
            ValueError: `extra_args["fusion"]` is not a `FusionSettings`.
        """
        try:
            FusionSettings.of(sampling_params)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"extra_args[{EXTRA_ARG!r}] is reserved; ask with the request field `fusion` instead"
            ) from error

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._state = batch_state(vllm_config)

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Pass a changed batch on; called before every forward pass."""
        if batch_update is not None and self._state is not None:
            self._state.update(batch_update)

    def is_argmax_invariant(self) -> bool:
        """It changes nothing, so greedy sampling may skip it."""
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits as they are."""
        return logits
