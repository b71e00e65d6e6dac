"""The demo family's experts as adapters: what each rank costs and keeps, teacher-forced, without a server.

    python -m zoo.compression [--examples 200] [--ranks 16 32 48]

Of each expert on its own task's held-out examples: numbers in the adapter, share of the change's energy kept, KL(expert
|| adapter) in nats per token of the answers, and what the fusion by `kl` makes of it. An answer counts as exact where
each of its tokens is the likeliest one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoTokenizer

from evaluation.bootstrap import Draws, Scores
from fusion_kernels import Weighting
from training.compress import compress
from zoo import FAMILY
from zoo.build import DATA
from zoo.examples import Task
from zoo.models import load_member
from zoo.prose import GSM8K_TEST, GSM8K_TRAIN, read_gsm8k
from zoo.recipe import EXPERTS
from zoo.tasks import FactTask, MathTask, TextTask
from zoo.weightings import Answers, fused

MODELS = FAMILY / "models"
HEAD = "| expert | adapter | numbers | kept | KL to the expert | fused: exact, % | fused: nats per token |"


def adapted(expert: str, rank: int) -> tuple[Any, int, float]:
    """The base with an expert's adapter of a rank, how many numbers it has, and what it keeps."""
    with tempfile.TemporaryDirectory() as folder:
        made = compress(MODELS / "base", MODELS / expert, Path(folder) / "adapter", rank)
        model = PeftModel.from_pretrained(load_member(MODELS / "base"), str(Path(folder) / "adapter"))
        return model.merge_and_unload(), made.parameters, made.kept


def divergence(expert: Tensor, other: Tensor) -> float:
    """Mean KL(expert || other) in nats over rows of logits [N, V]."""
    target, ours = expert.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((target.exp() * (target - ours)).sum(-1).mean())


def measure(examples: int, ranks: list[int]) -> None:
    """Print the table."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "large")
    tests = read_gsm8k(DATA / GSM8K_TEST)
    tasks: dict[str, Task] = {
        "math": MathTask(read_gsm8k(DATA / GSM8K_TRAIN), avoid=tests),
        "facts": FactTask(),
        "text": TextTask(),
    }
    print(f"{HEAD}\n|{'---|' * HEAD.count('|', 1)}")
    for expert in EXPERTS:
        asked = tasks[expert].test(examples)
        answers, draws = Answers(asked, tokenizer), Draws(expert, len(asked), seed=0)
        members = {name: answers.logits(load_member(MODELS / name)) for name in ("large", "base", expert)}
        whole = members[expert]
        numbers = sum(parameter.numel() for parameter in load_member(MODELS / expert).parameters())
        print(_row(expert, "none: the whole model", numbers, 1.0, whole, members, answers, draws), flush=True)
        for rank in ranks:
            model, numbers, kept = adapted(expert, rank)
            logits = answers.logits(model)
            print(_row(expert, f"rank {rank}", numbers, kept, logits, members, answers, draws), flush=True)


def _row(
    expert: str,
    label: str,
    numbers: int,
    kept: float,
    logits: Tensor,
    members: dict[str, Tensor],
    answers: Answers,
    draws: Draws,
) -> str:
    scores = answers.per_example(fused({**members, "served": logits}, ["served"], Weighting.KL, 0.0))

    def cell(score: Scores, digits: int) -> str:
        found = score.estimate()
        return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"

    exact = 100 * scores["exact"].double().numpy()
    nats = draws.score(-scores["log_p"].double().numpy(), scores["tokens"].double().numpy())
    ones = torch.ones(len(exact), dtype=torch.float64).numpy()
    found = [cell(draws.score(exact, ones), 0), cell(nats, 3)]
    lost = f"{divergence(members[expert], logits):.3f}"
    return "| " + " | ".join([f"`{expert}`", label, f"{numbers:,}", f"{kept:.0%}", lost, *found]) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 32, 48])
    chosen = parser.parse_args()
    torch.set_grad_enabled(False)
    measure(chosen.examples, chosen.ranks)
