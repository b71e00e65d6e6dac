"""The chat templates of members whose prompts are written by their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from server.config import Config
from server.config.prompts import SidePrompts
from server.engine.members import Member, Members
from server.engine.pairs import Pairs
from server.errors import ConfigError


def own_templates(config: Config, members: Members) -> dict[int, str]:
    """The templates by the members' numbers.

    Raises:
        ConfigError: a member that should write its own prompts has no chat template.
    """
    found = {}
    for where, number in _asked(config):
        found[number] = _template(where, members.numbered[number], members)
    return found


def _asked(config: Config) -> Iterator[tuple[str, int]]:
    """Where a template is asked for, and the member's number."""
    pairs = Pairs(config)
    given: list[tuple[str, str, SidePrompts]] = [
        (f"experts.{name}.prompt", name, expert.prompt) for name, expert in config.experts.items()
    ]
    for preset, settings in config.presets.items():
        given += [(f"presets.{preset}.prompts.{name}", name, sides) for name, sides in settings.prompts.items()]
    for where, name, sides in given:
        own = pairs.own(list(config.experts).index(name))
        for side, way, number in (("with", sides.expert, own.expert), ("against", sides.against, own.against)):
            if way is not None and way.template == "own" and number >= 0:
                yield f"{where}.{side}.template", number


def _template(where: str, member: Member, members: Members) -> str:
    from transformers import AutoTokenizer

    source = member if member.of is None else member.of
    folders = [source.folder] if source.kind == "model" else [source.folder, members.needed_base.folder]
    for folder in folders:
        try:
            template: Any = AutoTokenizer.from_pretrained(folder).chat_template
        except (OSError, ValueError):  # an adapter may have no tokenizer
            continue
        if isinstance(template, str):
            return template
        if isinstance(template, dict) and "default" in template:
            return str(template["default"])
    raise ConfigError(f"{where}: {source.name} has no chat template of its own in {folders[0]}")
