"""`zoo train`: from data and a seed to a complete family folder."""

import random
import shutil
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from zoo import FAMILY
from zoo.adapters import adapt, save_adapter, train_adapter
from zoo.corpus import Answered, answered, as_text, mixture
from zoo.echoes import echoes
from zoo.examples import Document, Task
from zoo.manifest import write_manifest
from zoo.models import build_model, load_member, save_member
from zoo.prose import GSM8K_TEST, GSM8K_TRAIN, prose, read_gsm8k, worked_prose
from zoo.recipe import EXPERTS, Recipe, Schedule
from zoo.router import fit_router
from zoo.tasks import FactTask, MathTask, TextTask
from zoo.tokenizer import train_tokenizer
from zoo.training import Anchor, Progress, answer_batches, packed_batches, train

# Called when a stage begins: its name and the tokens it will read; returns what each step reports to.
Stages = Callable[[str, int], Progress]
Sources = dict[str, Iterator[Document]]

DATA = FAMILY / "data"


class Family:
    """The data of one family, and its members as they come to be."""

    def __init__(self, recipe: Recipe, data: Path, out: Path, seed: int, stages: Stages) -> None:
        """Read the data.

        Raises:
            FileNotFoundError: `data` lacks one of GSM8K's files.
        """
        self.recipe, self.out, self.seed, self.stages = recipe, out, seed, stages
        math = MathTask(read_gsm8k(data / GSM8K_TRAIN), avoid=read_gsm8k(data / GSM8K_TEST))
        self.gsm8k = math.gsm8k
        self.tasks: dict[str, Task] = {"math": math, "facts": FactTask(), "text": TextTask()}
        self.tokenizer = self._train_tokenizer()

    def pretrain(self) -> None:
        """Train large and base on the same packed corpus."""
        schedules = {"base": self.recipe.base_schedule, "large": self.recipe.large_schedule}
        rng = random.Random(f"{self.seed} corpus")
        longest = max(schedule.tokens for schedule in schedules.values())
        packed = mixture(self._sources(rng), self.recipe.shares, longest, self.tokenizer, rng)
        for name, schedule in schedules.items():
            torch.manual_seed(self.seed)
            size = self.recipe.large if name == "large" else self.recipe.base
            model = build_model(size, self.recipe, self.tokenizer)
            order = torch.Generator().manual_seed(self.seed)
            batches = packed_batches(packed[: schedule.tokens], schedule.batch_tokens, self.recipe.stages, order)
            train(model, batches, schedule, self.stages(name, schedule.tokens))
            save_member(model, self.tokenizer, self.out / "models" / name)

    def practise(self) -> None:
        """Train both on, on questions of the tasks' kinds answered in many styles."""
        schedules = {"base": self.recipe.base_practice, "large": self.recipe.large_practice}
        rng = random.Random(f"{self.seed} practice")
        sources, shares = self._practice_sources(rng), self.recipe.practice_shares
        packed = mixture(sources, shares, self.recipe.practice_tokens, self.tokenizer, rng)
        for name, schedule in schedules.items():
            folder = self.out / "models" / name
            model = load_member(folder)
            order = torch.Generator().manual_seed(self.seed)
            batches = packed_batches(packed[: schedule.tokens], schedule.batch_tokens, self.recipe.stages, order)
            train(model, batches, schedule, self.stages(f"{name} practice", schedule.tokens))
            save_member(model, self.tokenizer, folder)

    def finetune(self, name: str) -> None:
        """Fine-tune an expert from the base: on its task's answers, and held to the base on everything else."""
        schedule = self.recipe.expert_schedules[name]
        rng = random.Random(f"{self.seed} {name}")
        examples = self._answers(name, schedule, rng)
        model, base = (load_member(self.out / "models" / "base") for _ in range(2))
        anchor = Anchor(base, self._elsewhere(name, rng), self.recipe.anchor.weight)
        train(model, answer_batches(examples, schedule, rng), schedule, self.stages(name, schedule.tokens), anchor)
        save_member(model, self.tokenizer, self.out / "models" / name)

    def finetune_large(self, name: str) -> None:
        """Fine-tune the large model on the same answers, as a LoRA adapter: the upper bound of fusion."""
        schedule = self.recipe.adapter_schedules[name]
        rng = random.Random(f"{self.seed} {name}")
        examples = self._answers(name, schedule, rng)
        folder = self.out / "models" / f"large-{name}"
        torch.manual_seed(self.seed)
        adapted = adapt(load_member(self.out / "models" / "large"), self.recipe.adapter_rank)
        batches = answer_batches(examples, schedule, rng)
        train_adapter(adapted, batches, schedule, self.stages(folder.name, schedule.tokens))
        save_adapter(adapted, folder)

    def _answers(self, name: str, schedule: Schedule, rng: random.Random) -> list[Answered]:
        longest = max(window for _, window in self.recipe.stages) // 2
        return answered(self.tasks[name].training(rng), schedule.tokens, longest, self.tokenizer, rng)

    def _elsewhere(self, name: str, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
        """Return endless batches of all that is not the task's own, the other tasks' questions and answers among it."""
        anchor = self.recipe.anchor
        sources = self._practice_sources(rng)
        del sources[name]
        shares = {source: anchor.shares.get(source, anchor.practice_share) for source in sources}
        for other in self.tasks:
            if other != name:
                sources[f"{other} answers"] = self.tasks[other].training(rng)
                shares[f"{other} answers"] = anchor.answers_share
        packed = mixture(sources, shares, anchor.corpus, self.tokenizer, rng)
        order = torch.Generator().manual_seed(self.seed)
        stages = ((1.0, anchor.window),)
        return chain.from_iterable(packed_batches(packed, anchor.batch_tokens, stages, order) for _ in repeat(None))

    def _practice_sources(self, rng: random.Random) -> Sources:
        tasks = {name: task.practice(rng) for name, task in self.tasks.items()}
        questions = [example.question for example in self.gsm8k]
        return {"prose": worked_prose(self.gsm8k, rng), "echoes": echoes(questions, rng), **tasks}

    def _sources(self, rng: random.Random) -> Sources:
        tasks = {name: task.pretraining(rng) for name, task in self.tasks.items()}
        questions = [example.question for example in self.gsm8k]
        return {"prose": prose(self.gsm8k, rng), "echoes": echoes(questions, rng), **tasks}

    def _train_tokenizer(self) -> PreTrainedTokenizerFast:
        rng = random.Random(f"{self.seed} tokenizer")

        def texts() -> Iterator[str]:
            for name, source in self._sources(rng).items():
                left = self.recipe.tokenizer_characters * self.recipe.shares[name]
                while left > 0:
                    text = as_text(next(source), rng)
                    left -= len(text)
                    yield text

        return train_tokenizer(texts(), self.recipe.vocabulary)


def build(recipe: Recipe, data: Path, out: Path, seed: int, stages: Stages) -> None:
    """Train the whole family into `out`: models, zoo.yaml and the manifest that `zoo verify` reads."""
    out.mkdir(parents=True, exist_ok=True)
    family = Family(recipe, data, out, seed, stages)
    family.pretrain()
    family.practise()
    for name in EXPERTS:
        family.finetune(name)
        family.finetune_large(name)
    fit_router(data, out)
    if not (out / "zoo.yaml").exists():
        shutil.copyfile(FAMILY / "zoo.yaml", out / "zoo.yaml")
    write_manifest(out)
