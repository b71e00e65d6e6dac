"""How long should an expert be fine-tuned? Each length, judged on held-out examples that no table of results uses.

    python -m zoo.lengths facts 30000 60000 120000 [--family FOLDER] [--examples 100] [--threads 1]

Fine-tunes the expert from the family's base once for each number of tokens, the rest of its schedule as in the recipe,
and prints what it does alone and beside the large model, teacher-forced as in `zoo.weightings`.
"""

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoTokenizer

from zoo import FAMILY
from zoo.build import DATA, Family
from zoo.held_out import COUNTS
from zoo.models import load_member
from zoo.recipe import EXPERTS, Recipe
from zoo.weightings import SETTINGS, Answers, fused


def judge(family: Path, name: str, lengths: list[int], examples: int) -> None:
    """Print one row for each length and setting."""
    models, recipe = family / "models", Recipe()
    members = {member: load_member(models / member) for member in ("large", "base")}
    upper = PeftModel.from_pretrained(load_member(models / "large"), str(models / f"large-{name}")).merge_and_unload()
    print("| tokens | setting | exact, % | tokens right, % | nats per token | gap closed in nats, % |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        shutil.copytree(models / "base", out / "models" / "base")
        trained = Family(recipe, DATA, out, 0, lambda *_: lambda *_: None)
        held_out = trained.tasks[name].test(COUNTS[name] + examples)[COUNTS[name] :]
        answers = Answers(held_out, AutoTokenizer.from_pretrained(models / "large"))
        logits = {member: answers.logits(model) for member, model in members.items()}
        ends = [answers.per_example(found) for found in (logits["large"], answers.logits(upper))]
        low, high = (-float(end["log_p"].sum() / end["tokens"].sum()) for end in ends)
        for tokens in lengths:
            schedules = recipe.expert_schedules
            trained.recipe = replace(
                recipe, expert_schedules=schedules | {name: replace(schedules[name], tokens=tokens)}
            )
            with torch.enable_grad():
                trained.finetune(name)
            logits[name] = answers.logits(load_member(out / "models" / name))
            found = {"expert alone": logits[name]} | {
                setting: fused(logits, [name], kind, alpha) for setting, (kind, alpha) in SETTINGS.items()
            }
            for setting, row in found.items():
                scores = answers.per_example(row)
                nats = -float(scores["log_p"].sum() / scores["tokens"].sum())
                exact, right = scores["exact"].mean(), scores["right"].sum() / scores["tokens"].sum()
                gap = (low - nats) / (low - high)
                print(f"| {tokens:,} | {setting} | {exact:.1%} | {right:.1%} | {nats:.3f} | {gap:.1%} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("expert", choices=EXPERTS)
    parser.add_argument("tokens", type=int, nargs="+")
    parser.add_argument("--family", type=Path, default=FAMILY)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.set_grad_enabled(False)
    judge(chosen.family, chosen.expert, chosen.tokens, chosen.examples)
