"""`zoo train`: from data and a seed to a complete family folder."""

import random
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from zoo.corpus import answered, as_text, mixture
from zoo.echoes import echoes
from zoo.examples import Document, Task
from zoo.manifest import write_manifest
from zoo.models import build_model, load_member, save_member
from zoo.prose import prose, read_gsm8k
from zoo.recipe import EXPERTS, Recipe, Schedule
from zoo.tasks import FactTask, MathTask, TextTask
from zoo.tokenizer import train_tokenizer
from zoo.training import Progress, answer_batches, packed_batches, train

# Called when a stage begins: its name and the tokens it will read; returns what each step reports to.
Stages = Callable[[str, int], Progress]
Sources = dict[str, Iterator[Document]]

DATA = Path(str(files("zoo"))) / "data"
GSM8K_TRAIN = "gsm8k_train.jsonl.gz"
GSM8K_TEST = "gsm8k_test.jsonl.gz"


class Family:
    """The data of one family, and its members as they come to be."""

    def __init__(self, recipe: Recipe, data: Path, out: Path, seed: int, stages: Stages) -> None:
        """Read the data.

        Raises:
            FileNotFoundError: `data` lacks one of GSM8K's files.
        """
        self.recipe, self.out, self.seed, self.stages = recipe, out, seed, stages
        self.gsm8k = read_gsm8k(data / GSM8K_TRAIN)
        math = MathTask(self.gsm8k, avoid=read_gsm8k(data / GSM8K_TEST))
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
            batches = packed_batches(packed[: schedule.tokens], schedule, self.recipe.stages, order)
            train(model, batches, schedule, self.stages(name, schedule.tokens))
            save_member(model, self.tokenizer, self.out / "models" / name)

    def finetune(self, name: str, start: str, folder: Path, schedule: Schedule) -> None:
        """Fine-tune a copy of the member `start` on the task `name`."""
        model = load_member(self.out / "models" / start)
        rng = random.Random(f"{self.seed} {name}")
        window = max(window for _, window in self.recipe.stages)
        examples = answered(self.tasks[name].training(rng), schedule.tokens, window, self.tokenizer, rng)
        batches = answer_batches(examples, schedule, rng)
        train(model, batches, schedule, self.stages(folder.name, schedule.tokens))
        save_member(model, self.tokenizer, folder)

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
    for name in EXPERTS:
        family.finetune(name, "base", out / "models" / name, recipe.expert_schedules[name])
    if not (out / "zoo.yaml").exists():
        shutil.copyfile(Path(str(files("zoo"))) / "zoo.yaml", out / "zoo.yaml")
    write_manifest(out)
