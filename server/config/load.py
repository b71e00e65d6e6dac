"""Reads a configuration file, applies overrides, and turns every fault into one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from server.config.engine import EngineArgumentError, check_engine_arguments
from server.config.schema import Config
from server.config.strict_yaml import parse
from server.errors import ConfigError, nearest
from zoo import FAMILY

Loc = tuple[str, ...]


def load_config(path: Path | None, overrides: Sequence[str] = (), *, routers_to_be: bool = False) -> Config:
    """Return the configuration in `path`, or the zoo's when that is None, with `a.b=value` overrides applied.

    Paths in the file are taken from the file's own folder, and come back absolute. With `routers_to_be`, routers may be
    missing: whoever asks is about to write one.

    Raises:
        ConfigError: anything about the file, its keys and values, or an override is wrong.
    """
    path = zoo_config() if path is None else path
    data = read_mapping(path, "a mapping with large, base, experts and presets is needed")
    changed = {override: _override(data, override) for override in overrides}
    try:
        config = Config.model_validate(data, context={"folder": path.resolve().parent, "routers_to_be": routers_to_be})
    except ValidationError as error:
        loc, message = describe_fault(error, data)
        raise ConfigError(f"{_source(path, loc, changed)}: {message}") from None
    try:
        check_engine_arguments(config.engine)
    except EngineArgumentError as error:
        raise ConfigError(f"{_source(path, ('engine', error.argument), changed)}: {error}") from None
    return config


def zoo_config() -> Path:
    """Return the configuration file of the embedded models.

    Raises:
        ConfigError: this installation has none.
    """
    path = FAMILY / "zoo.yaml"
    if not path.is_file():
        raise ConfigError(f"the embedded models' configuration {path} is missing; name a file with --config")
    return path


def read_mapping(path: Path, needed: str) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: the file is not there, or not YAML, or holds something else than what is `needed`.
    """
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    except yaml.MarkedYAMLError as error:
        mark = f":{error.problem_mark.line + 1}:{error.problem_mark.column + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{mark}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        found = "it is empty" if data is None else f"it is a {type(data).__name__}"
        raise ConfigError(f"{path}: {needed}; {found}")
    return data


def _override(data: dict[str, Any], override: str) -> Loc:
    """Apply one `a.b=value` to `data` and return the path that it changed."""
    dotted, separator, text = override.partition("=")
    rest = dotted.strip().split(".")
    if not separator or not all(rest):
        raise ConfigError(f"--set {override}: write it as key.key=value, such as engine.max_num_seqs=64")
    try:
        value = parse(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from None
    here: dict[str, Any] = data
    loc: list[str] = []
    while True:
        key, rest = _next_key(here, rest, value, loc, override)
        loc.append(key)
        if not rest:
            here[key] = value
            return tuple(loc)
        # An absent or empty section starts as an empty mapping.
        section = here.get(key)
        here[key] = section = {} if section is None else section
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: {'.'.join(loc)} is a value, not a section with keys")
        here = section


def _next_key(
    here: dict[str, Any], rest: list[str], value: object, loc: list[str], override: str
) -> tuple[str, list[str]]:
    """Split the next key off a dotted path. Names of presets may hold dots: the longest one that exists wins."""
    if loc not in (["presets"], ["experts"]):
        return rest[0], rest[1:]
    for size in range(len(rest), 0, -1):
        name = ".".join(rest[:size])
        if name in here:
            return name, rest[size:]
    if len(rest) == 1 and isinstance(value, dict):
        return rest[0], []
    name = ".".join(rest[:-1]) or rest[0]
    raise ConfigError(f"--set {override}: there is no '{name}' in {loc[0]}; {nearest(name, map(str, here))}")


def describe_fault(error: ValidationError, data: dict[str, Any]) -> tuple[Loc, str]:
    """Return where the first fault is, and what it is with the path to it."""
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    kind, message, value = first["type"], first["msg"], first["input"]
    loc = _field_path(first["loc"], data)
    if kind == "unknown_key":
        key = context["key"]
        where = f" in {'.'.join(loc)}" if loc else ""
        return (*loc, key), f"unknown key '{key}'{where}; {message}"
    if kind == "missing":
        where = ".".join(loc) or "the file"
        return loc, f"{where} lacks the key '{first['loc'][-1]}'"
    if kind == "fault":
        loc = (*loc, *context["where"])
    elif kind == "value_error":
        message = str(context["error"])
    elif kind == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        message = f"'{value}' is not one of {', '.join(choices)}; {nearest(str(value), choices)}"
    elif first["loc"][-1:] == ("[key]",):
        message = f"a name must be text; write it in quotes: '{value}'"
    elif kind in EXPECTED:
        message = f"{EXPECTED[kind]} is needed here, not {value!r}"
    return loc, f"{'.'.join(loc)}: {' '.join(message.split())}"


EXPECTED = {
    "string_type": "text",
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
}


def _field_path(loc: tuple[int | str, ...], data: object) -> Loc:
    """Keep of pydantic's location what the user wrote: it also names the branches of unions, and missing keys."""
    path = []
    for part in loc:
        try:
            data = data[part]  # type: ignore[index]
        except (IndexError, KeyError, TypeError):
            continue
        path.append(str(part))
    return tuple(path)


def _source(path: Path, loc: Loc, changed: dict[str, Loc]) -> str:
    """Say who wrote what is at `loc`: the file, or the file with the overrides that reach there."""
    reaching = [f"--set {text}" for text, at in changed.items() if loc and loc[: len(at)] == at[: len(loc)]]
    return " with ".join((str(path), *reaching))
