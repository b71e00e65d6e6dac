"""Do all weights at once (`KL_JOINT`) serve the zoo better than the best single expert (`KL`)?

    python -m bench.joint [--examples 40]

Teacher-forced on held-out examples of each task, with all experts of the zoo in use: the negative log-likelihood per
token of the right answer, in nats, under the large model alone, the two paper weightings, and all weights at once.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import zoo
from fusion_kernels import Weighting, fuse_logits
from zoo.build import DATA, GSM8K_TRAIN
from zoo.examples import Example, Task
from zoo.prose import read_gsm8k
from zoo.tasks import FactTask, MathTask, TextTask

RESULTS = Path(__file__).parent / "results" / "joint.csv"
MODELS = Path(zoo.__file__ or "").parent / "models"
EXPERTS = ("math", "facts", "text")
KINDS = (Weighting.NONE, Weighting.STATIC, Weighting.KL_GRID, Weighting.KL, Weighting.KL_JOINT)


def measure(examples: int) -> list[dict[str, Any]]:
    """One row per task: nats per answer token under each weighting, and the share of tokens `KL_JOINT` mixes."""
    tokenizer: Any = AutoTokenizer.from_pretrained(MODELS / "large")
    members: list[Any] = [
        AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32) for name in ("large", "base", *EXPERTS)
    ]
    rows = []
    math: Task = MathTask(read_gsm8k(DATA / GSM8K_TRAIN))
    for name, task in (("math", math), ("facts", FactTask()), ("text", TextTask())):
        totals = dict.fromkeys(KINDS, 0.0)
        tokens = mixed = 0
        for logits, targets in _answers(task.test(examples), tokenizer, members):
            tokens += len(targets)
            for kind in KINDS:
                fused = _fuse(logits, kind)
                totals[kind] -= float(fused.logits.log_softmax(-1).gather(1, targets[:, None]).sum())
                if kind == Weighting.KL_JOINT:
                    mixed += int((fused.alpha > 0.01).sum(1).gt(1).sum())
        row = {"task": name, "tokens": tokens}
        row |= {kind.name.lower().replace("_", "-"): round(totals[kind] / tokens, 4) for kind in KINDS}
        rows.append(row | {"mixed_share": round(mixed / tokens, 3)})
    return rows


def _answers(examples: Iterable[Example], tokenizer: Any, members: list[Any]) -> Iterable[tuple[list[Any], Any]]:
    """Every member's logits [N, V] at an answer's positions, and its tokens [N]."""
    for example in examples:
        turns = [{"role": "user", "content": example.question}, {"role": "assistant", "content": example.answer}]
        prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(turns, return_dict=False)
        with torch.no_grad():
            outputs = [member(torch.tensor([whole])).logits[0, len(prompt) - 1 : -1] for member in members]
        yield outputs, torch.tensor(whole[len(prompt) :])


def _fuse(logits: list[Any], kind: Weighting) -> Any:
    rows, number = len(logits[0]), len(logits) - 2
    return fuse_logits(
        logits[0],
        logits[1],
        logits[2:],
        kind=torch.full((rows,), kind, dtype=torch.int8),
        use=torch.ones(rows, number, dtype=torch.bool),
        # Static weights add up to proxy-tuning's 1.0.
        alpha=torch.full((rows, number), 1 / number),
        alpha_max=torch.full((rows,), 2.0),
    )


def main() -> None:
    """Measure, print the table, store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=40)
    rows = measure(parser.parse_args().examples)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    print(f"stored in {RESULTS}")


if __name__ == "__main__":
    main()
