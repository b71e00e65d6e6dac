"""What a training leaves beside the weights: its settings, a model card, the held-out part as a suite for `eval`."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from server.config import Config
from server.errors import ConfigError
from training.data import Example, as_rows

if TYPE_CHECKING:
    from training.trainer import Trained

SETTINGS, CARD, SUITE, HELD_OUT = "training.json", "README.md", "suite.yaml", "held_out.jsonl"
# Answers of at most so many tokens are scored by whether they are exactly right, longer ones in nats.
SHORT_ANSWER = 64
COMPARED: dict[str, dict[str, Any]] = {
    "large": {"weighting": "none"},
    "expert alone": {"weighting": "alone"},
    "static 1.0": {"weighting": "static", "alpha": 1.0},
    "kl": {"weighting": "kl"},
    "kl-safe": {"weighting": "kl-safe"},
}


@dataclass(frozen=True)
class Place:
    """Where an expert goes."""

    name: str
    folder: Path

    @property
    def work(self) -> Path:
        """Checkpoints, while it is trained."""
        return self.folder / "checkpoints"

    def clear(self) -> None:
        """Remove an expert that was trained here.

        Raises:
            ConfigError: the folder holds other things.
        """
        if self.folder.is_dir() and any(self.folder.iterdir()):
            if not (self.folder / SETTINGS).is_file():
                raise ConfigError(
                    f"--fresh: {self.folder} holds other things than an expert; --out takes another folder"
                )
            shutil.rmtree(self.folder)

    def agree(self, stated: dict[str, Any]) -> bool:
        """Note what is trained here; whether it is complete already.

        Raises:
            ConfigError: something else was, or the folder holds other things.
        """
        path = self.folder / SETTINGS
        if path.is_file():
            known = json.loads(path.read_text(encoding="utf-8"))
            for key, value in stated.items():
                if known.get(key) != value:
                    raise ConfigError(
                        f"{self.folder}: an expert was trained there with {key} {known.get(key)}, not {value}; "
                        "--fresh begins anew, --out takes another folder"
                    )
            return "score" in known
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise ConfigError(f"{self.folder}: the folder holds other things; --out takes another one")
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_json(path, stated)
        return False


def write_results(
    place: Place, stated: dict[str, Any], trained: Trained, held_out: list[Example], longest: int, chats: bool
) -> None:
    """Write the held-out part as a suite, the card and, last, that the expert is complete.

    Args:
        place: where.
        stated: what was trained, as `Place.agree` had it.
        trained: what came of it.
        held_out: the examples that it was judged by.
        longest: the tokens of their longest answer.
        chats: whether prompts are chats.
    """
    (place.folder / HELD_OUT).write_text("".join(as_rows(held_out)), encoding="utf-8")
    exact = longest <= SHORT_ANSWER
    task: dict[str, Any] = {
        "data": HELD_OUT,
        "metric": "exact" if exact else "nll",
        "messages": "messages",
        "answer": "{answer}",
        "chat": chats,
        "expert": place.name,
    }
    if exact:
        # An answer that goes on past the longest right one is wrong, however far it would go.
        task["max_tokens"] = longest + 8
    suite = {"tasks": {"held out": task}, "settings": COMPARED, "tables": {place.name: {"experts": "own"}}}
    (place.folder / SUITE).write_text(yaml.safe_dump(suite, sort_keys=False), encoding="utf-8")
    (place.folder / CARD).write_text(_card(place, stated, trained), encoding="utf-8")
    score = {"first": asdict(trained.first), "best": asdict(trained.best), "step": trained.step}
    _write_json(place.folder / SETTINGS, stated | {"score": score})


def lines(place: Place, kind: str, beside: Path) -> dict[str, Any]:
    """Return what a configuration in the folder `beside` needs to serve the expert: its entry, and a preset."""
    folder = place.folder.resolve()
    inside = folder.is_relative_to(beside.resolve())
    source = f"./{folder.relative_to(beside.resolve())}" if inside else str(folder)
    return {
        "experts": {place.name: {kind: source}},
        "presets": {place.name: {"experts": [place.name], "weighting": "kl"}},
    }


def add_to(path: Path, added: dict[str, Any], config: Path, loaded: Config) -> None:
    """Add entries to a configuration file, of which comments and order stay.

    Args:
        path: the file. Where there is none, it begins as a copy of `config`, with whole paths of models and routers.
        added: entries by section.
        config: the configuration that was trained with.
        loaded: the same, as it was understood.

    Raises:
        ConfigError: there is an entry of that name that says something else.
    """
    from ruamel.yaml import YAML

    reader = YAML()
    reader.preserve_quotes = True
    reader.width = 10_000
    source = path if path.is_file() else config
    whole = reader.load(source.read_text(encoding="utf-8"))
    if source is not path:
        sections: list[tuple[Any, Any]] = [(whole["large"], loaded.large), (whole["base"], loaded.base)]
        sections += [(whole["experts"][name], expert) for name, expert in loaded.experts.items()]
        sections += [(whole["presets"][name], preset) for name, preset in loaded.presets.items()]
        for written, understood in sections:
            for kind in ("model", "adapter", "route"):
                if kind in written:
                    written[kind] = getattr(understood, kind)
    for section, entries in added.items():
        held = whole.get(section) or {}
        whole[section] = held
        for name, entry in entries.items():
            if name in held and dict(held[name]) != entry:
                raise ConfigError(f"{path}: {section}.{name} is there already and says something else; mend it by hand")
            held[name] = entry
    text = StringIO()
    reader.dump(whole, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.getvalue(), encoding="utf-8")


def _card(place: Place, stated: dict[str, Any], trained: Trained) -> str:
    header = {"base_model": stated["base"], "tags": ["logit-fusion", "trl", "full" if stated["full"] else "lora"]}
    if not stated["full"]:
        header["library_name"] = "peft"
    rows = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in stated.items())
    best, first = trained.best, trained.first
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {place.name}

An expert that steers a large model by logit fusion: logits = large + alpha (expert - base).

| | |
|---|---|
{rows}

Held-out answers in nats per token (lower is better), with the weights of step {trained.step}; {trained.steps} were run:

| large alone | base alone | expert alone | fused by `kl` |
|---:|---:|---:|---:|
| {best.large:.3f} | {first.expert:.3f} | {best.expert:.3f} | {best.fused:.3f} |

`logit-fusion eval --expert {place.name}` asks the held-out part ({HELD_OUT}) of a server under every way of weighting.
"""


def _write_json(path: Path, data: dict[str, Any]) -> None:
    # In one piece: a process that is killed leaves the old file or the new one.
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
