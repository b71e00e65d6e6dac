"""Training: TRL's trainer, with the anchor in its loss and the fusion's held-out score as its measure."""

from __future__ import annotations

import copy
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from server.progress import Say
from training.anchor import Anchor
from training.fused import HeldOut, Score
from training.tokens import Tokens

MEASURE = "eval_fused_nats"
# So many evaluations without a better fusion end the training.
PATIENCE = 3
EVALUATIONS_PER_EPOCH = 2


@dataclass(frozen=True)
class Settings:
    """What decides what comes of a training; equal settings over equal data resume it."""

    full: bool
    rank: int
    epochs: int
    learning_rate: float
    batch_size: int
    hold_weight: float
    seed: int


@dataclass(frozen=True)
class Trained:
    """What came of it."""

    first: Score
    """Of the base, in the expert's place."""
    best: Score
    step: int
    steps: int


class ExpertTrainer(SFTTrainer):
    """Learns answers alone, holds the model to its base elsewhere, and is judged by what the fusion makes of it."""

    def __init__(self, *, anchor: Anchor | None, held_out: HeldOut, **arguments: Any) -> None:
        self._anchor = anchor
        self._held_out = held_out
        super().__init__(**arguments)

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        """Return TRL's loss of the batch's answers, and the anchor's beside it."""
        loss = super().compute_loss(model, inputs, *arguments, **options)  # type: ignore[no-untyped-call]
        if self._anchor is not None and model.training:
            held: Tensor = self._anchor.loss(self.accelerator.unwrap_model(model))
            loss = loss + held / self.current_gradient_accumulation_steps
        return loss

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """Measure the fusion beside the expert; here, so that what stops early sees it."""
        output: Any = super().evaluation_loop(*arguments, **options)
        score = self._held_out.score(self.accelerator.unwrap_model(self.model))
        output.metrics.update({MEASURE: score.fused, "eval_expert_nats": score.expert})
        return output


class _Lines(TrainerCallback):
    """One line for each evaluation."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def on_evaluate(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Say how far the expert is."""
        metrics: dict[str, float] = rest["metrics"]
        self._say(
            f"step {state.global_step} of at most {state.max_steps}: held-out nats per token: "
            f"expert alone {metrics['eval_expert_nats']:.3f}, fused {metrics[MEASURE]:.3f}"
        )


def train(
    model: Any,
    tokenizer: Any,
    trained: list[Tokens],
    held_out: HeldOut,
    texts: Tensor | None,
    settings: Settings,
    work: Path,
    say: Say,
) -> tuple[Trained, Any]:
    """Train a base in place, or an adapter over it, and return what came of it and the model of the best evaluation.

    Args:
        model: the base.
        tokenizer: the members'.
        trained: the examples.
        held_out: the answers that judge it, with what large and base say of them.
        texts: what the model is held to its base on, [N, length]; `None`: nothing.
        settings: see there.
        work: the folder for checkpoints; those that are there are gone on from.
        say: takes lines on how far it is.
    """
    steps_per_epoch = max(1, len(trained) // settings.batch_size)
    every = max(1, steps_per_epoch // EVALUATIONS_PER_EPOCH)
    first = held_out.score(model)
    anchor = None
    if texts is not None and settings.hold_weight:
        frozen = copy.deepcopy(model).eval() if settings.full else None
        anchor = Anchor(texts, settings.batch_size, settings.hold_weight, frozen)
    trainer = ExpertTrainer(
        anchor=anchor,
        held_out=held_out,
        model=model,
        args=_arguments(settings, work, every),
        train_dataset=_dataset(trained),
        eval_dataset=_dataset(trained[:1]),
        processing_class=tokenizer,
        peft_config=None
        if settings.full
        else LoraConfig(
            r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[EarlyStoppingCallback(PATIENCE), _Lines(say)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_whole_checkpoints(work) or None)
    best = trainer.accelerator.unwrap_model(trainer.model)
    return Trained(first, held_out.score(best), trainer.state.best_global_step or 0, trainer.state.global_step), best


def _whole_checkpoints(work: Path) -> bool:
    """Whether there is a checkpoint to go on from; one whose writing was cut off lacks what comes last, and goes."""
    whole = False
    for folder in work.glob("checkpoint-*"):
        if (folder / "trainer_state.json").is_file():
            whole = True
        else:
            shutil.rmtree(folder)
    return whole


def _arguments(settings: Settings, work: Path, every: int) -> SFTConfig:
    on_gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.0,
        per_device_train_batch_size=settings.batch_size,
        max_length=None,
        completion_only_loss=True,
        gradient_checkpointing=on_gpu,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=MEASURE,
        greater_is_better=False,
        logging_strategy="no",
        report_to="none",
        seed=settings.seed,
        disable_tqdm=not sys.stderr.isatty(),
    )


def _dataset(examples: list[Tokens]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [example.ids for example in examples],
            "completion_mask": [[0] * example.start + [1] * (len(example.ids) - example.start) for example in examples],
        }
    )
