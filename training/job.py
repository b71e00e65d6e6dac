"""One training from its configuration to a folder that a server loads."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from typing import Any

import datasets
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from server.config import Config
from server.engine.checks import Report, check_members
from server.engine.members import Member, fetch_weights
from server.progress import Phases, Say
from training.anchor import off_task, own_texts
from training.data import Data
from training.fused import HeldOut
from training.output import Place, write_results
from training.tokens import ChatTokenizer
from training.trainer import Settings, Trained, train


def checked(config: Config) -> Report:
    """Check that large and base go together, without the experts that there are.

    Raises:
        ConfigError: they do not.
    """
    # A preset that routes needs the experts that its router knows.
    presets = {name: preset for name, preset in config.presets.items() if preset.route is None}
    return check_members(config.model_copy(update={"experts": {}, "presets": presets}))


def learning_rate(base: Member, full: bool) -> float:
    """What suits a base of its width, where nobody says otherwise.

    Adapters want about ten times what full fine-tuning does (Schulman et al., "LoRA Without Regret", 2025), and
    narrow models more than wide ones.
    """
    of_adapters = 5e-4 * (2048 / int(base.text_config.hidden_size)) ** 0.5
    return float(f"{of_adapters / (10 if full else 1):.1e}")


def run(report: Report, data: Data, settings: Settings, place: Place, phases: Phases, say: Say) -> Trained | None:
    """Train an expert over the report's base; `None` where the folder has it already.

    Args:
        report: of large and base.
        data: what is learned, and what is held out.
        settings: see there.
        place: where it goes.
        phases: told what is under way, until the trainer draws its own bar.
        say: takes lines on how far it is.

    Raises:
        ConfigError: an example is too long, or the folder holds another training.
    """
    base = report.members.needed_base
    coder = ChatTokenizer(report.members.large.folder, report.max_model_len)
    learned, kept = coder.encode(data.trained), coder.encode(data.held_out)
    stated = {
        "base": base.hub_id or str(base.folder),
        "data": data.digest,
        "examples": len(data.trained),
        "held_out": len(data.held_out),
        **asdict(settings),
    }
    if place.agree(stated):
        return None
    fetch_weights(report.members)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    held = HeldOut(kept)
    phases.begin(f"asking the large model for {len(held)} held-out answers")
    large = _load(report.members.large, halved=True)
    held.ask_large(large)
    del large
    phases.begin("asking the base")
    # All weights are trained in float32; an adapter's own are float32 anyway.
    model = _load(base, halved=not settings.full)
    held.ask_base(model)
    texts = _texts(model, coder, data, settings) if settings.hold_weight else None
    # The trainer draws a bar of its own.
    phases.end()
    trained, best = train(model, coder.tokenizer, learned, held, texts, settings, place.work, say)
    best.save_pretrained(place.folder)
    if settings.full:
        coder.tokenizer.save_pretrained(place.folder)
    longest = max(len(example.ids) - example.start for example in kept)
    write_results(place, stated, trained, data.held_out, longest, coder.chats)
    shutil.rmtree(place.work, ignore_errors=True)
    return trained


def _texts(model: Any, coder: ChatTokenizer, data: Data, settings: Settings) -> Tensor | None:
    """What the expert is held to its base on: texts of other kinds than the task."""
    opening = coder.opening
    texts = own_texts(model, opening, settings.seed)
    written = coder.tokenizer.batch_decode(texts[:, len(opening) :], skip_special_tokens=True)
    questions = (turn["content"] for example in data.trained for turn in example.turns)
    kept = texts[torch.tensor(off_task(written, questions))]
    return kept if len(kept) else None


def _load(member: Member, halved: bool) -> Any:
    """A member's model, in bfloat16 where the device is made for it and `halved` allows it."""
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if halved and on_gpu and torch.cuda.is_bf16_supported() else torch.float32
    # Only where there is a GPU: it takes a library to spread a model over several.
    spread = {"device_map": "auto"} if on_gpu else {}
    return AutoModelForCausalLM.from_pretrained(member.folder, dtype=dtype, **spread)
