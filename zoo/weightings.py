"""Every weighting on the held-out examples of the demo family, teacher-forced, without a server.

    python -m zoo.weightings [--examples 200] [--family FOLDER]

An answer counts as exact where each of its tokens is the likeliest one, which is what greedy decoding would give.
Members run once per task, so 200 examples a task take about six minutes. `logit-fusion eval` asks the server itself.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoTokenizer

from evaluation.bootstrap import Draws, Scores, gap_closed
from fusion_kernels import Weighting
from training.fused import fuse_alike
from zoo import FAMILY
from zoo.build import DATA
from zoo.examples import Example
from zoo.models import load_member
from zoo.prose import GSM8K_TEST, GSM8K_TRAIN, read_gsm8k
from zoo.recipe import EXPERTS
from zoo.tasks import FactTask, MathTask, TextTask
from zoo.tasks.math import without_marks
from zoo.tokenizer import EOS, chat_prompt

SETTINGS = {
    "static 0.33": (Weighting.STATIC, 1 / 3),
    "static 0.5": (Weighting.STATIC, 0.5),
    "static 1.0": (Weighting.STATIC, 1.0),
    "static 1.5": (Weighting.STATIC, 1.5),
    "kl-grid": (Weighting.KL_GRID, 0.0),
    "kl": (Weighting.KL, 0.0),
    "kl-safe": (Weighting.KL_SAFE, 0.0),
}


class Answers:
    """The tokens of some examples' answers, and what members say at their places."""

    def __init__(self, examples: Sequence[Example], tokenizer: Any) -> None:
        self.pairs = [
            tuple(
                tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (chat_prompt(example.question), example.answer + EOS)
            )
            for example in examples
        ]
        self.targets = torch.tensor([token for _, answer in self.pairs for token in answer])
        self.owner = torch.tensor([i for i, (_, answer) in enumerate(self.pairs) for _ in answer])

    @torch.no_grad()
    def logits(self, model: Any) -> Tensor:
        """[N, V] at the places of the answers' tokens."""
        found = []
        for prompt, answer in self.pairs:
            hidden = model.model(input_ids=torch.tensor([(prompt + answer)[:-1]]), use_cache=False).last_hidden_state
            found.append(model.lm_head(hidden[0, len(prompt) - 1 :]))
        return torch.cat(found)

    def per_example(self, logits: Tensor) -> dict[str, Tensor]:
        """Of each example: whether it is exact, its log-likelihood, its right tokens, its tokens; all [examples]."""
        log_p = logits.log_softmax(-1).gather(1, self.targets[:, None])[:, 0]
        right = (logits.argmax(-1) == self.targets).float()
        sums = [
            torch.zeros(len(self.pairs)).index_add_(0, self.owner, x) for x in (log_p, right, torch.ones_like(right))
        ]
        return {"exact": (sums[1] == sums[2]).float(), "log_p": sums[0], "right": sums[1], "tokens": sums[2]}


def fused(members: dict[str, Tensor], names: Sequence[str], kind: Weighting, alpha: float) -> Tensor:
    """[N, V]: the fusion with those experts."""
    return fuse_alike(members["large"], members["base"], [members[name] for name in names], kind, alpha)


def line(scores: dict[str, Tensor], large: dict[str, Tensor], upper: dict[str, Tensor], draws: Draws) -> str:
    """One row of a table: exact answers and gap closed with intervals, tokens right, nats per token."""

    def nats(of: dict[str, Tensor]) -> Scores:
        return draws.score(-of["log_p"].double().numpy(), of["tokens"].double().numpy())

    def cell(score: Scores) -> str:
        estimate = score.estimate()
        return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"

    exact = 100 * scores["exact"].double().numpy()
    tokens = 100 * scores["right"].sum() / scores["tokens"].sum()
    gap = gap_closed(nats(scores), nats(large), nats(upper))
    return " | ".join(
        [
            cell(draws.score(exact, np.ones_like(exact))),
            f"{tokens:.1f}",
            f"{nats(scores).value:.3f}",
            "no gap" if gap is None else cell(gap),
        ]
    )


def measure(family: Path, examples: int) -> None:
    """Print the tables."""
    models = family / "models"
    tokenizer = AutoTokenizer.from_pretrained(models / "large")
    members: dict[str, Any] = {name: load_member(models / name) for name in ("large", "base", *EXPERTS)}
    for name in EXPERTS:
        adapted = PeftModel.from_pretrained(load_member(models / "large"), str(models / f"large-{name}"))
        members[f"large-{name}"] = adapted.merge_and_unload()
    tests = read_gsm8k(DATA / GSM8K_TEST)
    tasks = {
        "math": MathTask(read_gsm8k(DATA / GSM8K_TRAIN), avoid=tests).test(examples),
        "facts": FactTask().test(examples),
        "text": TextTask().test(examples),
        "gsm8k": [Example(e.question, without_marks(e.answer)) for e in tests[: examples // 2]],
    }
    for task, asked in tasks.items():
        own = "math" if task == "gsm8k" else task
        answers = Answers(asked, tokenizer)
        logits = {name: answers.logits(model) for name, model in members.items() if "-" not in name or own in name}
        large, upper = (answers.per_example(logits[name]) for name in ("large", f"large-{own}"))
        draws = Draws(task, len(asked), seed=0)
        others = [name for name in EXPERTS if name != own]
        print(f"\n### {task}, {len(asked)} examples, {len(answers.targets)} tokens\n")
        print("| experts | setting | exact, % | tokens right, % | nats per token | gap closed in nats, % |")
        print("|---|---|---|---|---|---|")
        for name, label in (("large", "large"), (own, "expert alone"), (f"large-{own}", "large fine-tuned")):
            print(f"| | {label} | {line(answers.per_example(logits[name]), large, upper, draws)} |")
        for names in ([own], list(EXPERTS), *([other] for other in others)):
            for setting, (kind, alpha) in SETTINGS.items():
                scores = answers.per_example(fused(logits, names, kind, alpha))
                print(f"| {', '.join(names)} | {setting} | {line(scores, large, upper, draws)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--family", type=Path, default=FAMILY)
    chosen = parser.parse_args()
    torch.set_grad_enabled(False)
    measure(chosen.family, chosen.examples)
