"""The training loop: bf16 arithmetic on float32 weights, Muon for hidden matrices, AdamW for the rest."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from training.anchor import drift
from zoo.corpus import Answered
from zoo.induction import keep_induction_head
from zoo.recipe import Schedule

# Called with the tokens read by one step and its loss in nats.
Progress = Callable[[int, float], None]
IGNORED = -100
GRADIENT_NORM = 1.0


def packed_batches(
    packed: Tensor, batch_tokens: int, stages: Sequence[tuple[float, int]], generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a packed sequence [n] into batches of windows, stage by stage (share of the tokens, window).

    Yields:
        inputs and targets, each [windows, window] int64.
    """
    start = 0
    for share, window in stages:
        rows = min(int(share * len(packed)), len(packed) - start - 1) // window
        offsets = start + window * torch.randperm(rows, generator=generator)
        for chosen in torch.split(offsets, max(1, batch_tokens // window)):
            index = chosen[:, None] + torch.arange(window + 1)
            windows = packed[index].long()
            yield windows[:, :-1], windows[:, 1:]
        start += rows * window


def answer_batches(
    examples: Sequence[Answered], schedule: Schedule, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch examples of similar length, each from its own position 0; only answers are targets.

    Yields:
        inputs and targets, each [examples, longest] int64. Padding is on the right, where causal attention never
        looks, so no mask is needed.
    """
    batches: list[list[Answered]] = []
    # Sorting all examples would make every batch of one kind; sorting slices keeps them mixed.
    for first in range(0, len(examples), 2048):
        batch: list[Answered] = []
        for example in sorted(examples[first : first + 2048], key=lambda e: len(e.ids)):
            if batch and (len(batch) + 1) * len(example.ids) > schedule.batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(example)
        batches.append(batch)
    rng.shuffle(batches)
    for batch in batches:
        length = max(len(example.ids) for example in batch) - 1
        inputs = torch.zeros(len(batch), length, dtype=torch.int64)
        targets = torch.full((len(batch), length), IGNORED)
        for row, example in enumerate(batch):
            ids = torch.tensor(example.ids)
            inputs[row, : len(ids) - 1] = ids[:-1]
            targets[row, example.start - 1 : len(ids) - 1] = ids[example.start :]
        yield inputs, targets


@dataclass(frozen=True)
class Anchor:
    """What keeps a model as it was outside its task: KL(frozen || model) on other documents, beside the task's loss."""

    frozen: LlamaForCausalLM
    batches: Iterator[tuple[Tensor, Tensor]]
    weight: float

    def loss(self, model: LlamaForCausalLM) -> Tensor:
        """KL(frozen || model) in nats, averaged over the tokens of the next batch, times the weight."""
        inputs, _ = next(self.batches)
        everywhere = torch.ones_like(inputs, dtype=torch.bool)
        with torch.no_grad():
            wanted = _logits(self.frozen, inputs, everywhere)
        return self.weight * drift(_logits(model, inputs, everywhere), wanted)


def train(
    model: LlamaForCausalLM,
    batches: Iterable[tuple[Tensor, Tensor]],
    schedule: Schedule,
    progress: Progress,
    anchor: Anchor | None = None,
) -> None:
    """Train a model in place on batches of inputs and targets."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        # No weight decay anywhere: it would wear down the weights that are kept from gradients.
        torch.optim.Muon(matrices, lr=schedule.matrix_lr, weight_decay=0.0, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=schedule.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    lift = keep_induction_head(model)
    peaks = [schedule.matrix_lr, schedule.other_lr]
    model.train()
    read = 0
    for inputs, targets in batches:
        rate = schedule.rate(read + inputs.numel())
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        loss = answer_loss(model, inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        if anchor:
            anchor.loss(model).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        read += inputs.numel()
        progress(inputs.numel(), loss.item())
    lift()
    model.train(False)


def answer_loss(model: LlamaForCausalLM, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats, averaged over the targets that are not ignored."""
    wanted = targets != IGNORED
    return functional.cross_entropy(_logits(model, inputs, wanted), targets[wanted])


def _logits(model: LlamaForCausalLM, inputs: Tensor, wanted: Tensor) -> Tensor:
    """[positions, vocabulary] float32 at the wanted positions of the inputs [rows, length]."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
        logits: Tensor = model.lm_head(hidden[wanted])
    return logits.float()
