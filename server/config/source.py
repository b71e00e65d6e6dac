"""Model sources: the one rule that tells a folder from an id on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo

RULE = (
    "A model is a folder, or a `.gguf` file, when it starts with `/`, `./`, `../` or `~`, when that folder or its "
    "first part exists beside the configuration file, or when it is not of the form `name` or `owner/name`. Otherwise "
    "it is an id on the hub. Environment variables, such as `$HOME`, are put in first."
)
GGUF = ".gguf"
VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve_source(text: str, folder: Path) -> str:
    """Return the absolute path of a local model, or the id of one on the hub, by `RULE`.

    Environment variables (`$HOME`, `${MODELS}`) are put in first.

    Raises:
        ValueError: it is a folder or file by the rule and does not exist, or names a variable that is not set.
    """
    if not text.strip() or not text.isprintable():
        raise ValueError("a folder or an id on the hub is needed here")
    given, text = text, os.path.expandvars(text)
    if unset := VARIABLE.search(text):
        raise ValueError(f"'{given}' names the environment variable {unset[1] or unset[2]}, which is not set")
    path = folder / Path(text).expanduser()
    looks_local = text.startswith(("/", "./", "../", "~")) or text in (".", "..") or not HUB_ID.fullmatch(text)
    if not looks_local:
        looks_local = (folder / Path(text).parts[0]).is_dir()
    if not looks_local:
        return text
    if not path.is_dir() and not (path.suffix == GGUF and path.is_file()):
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise ValueError(f"'{text}' {what} (looked for {path.resolve()})")
    return str(path.resolve())


def beside(text: str, info: ValidationInfo) -> Path:
    """A path that the file names, from the file's own folder."""
    folder = info.context["folder"] if info.context else Path.cwd()
    return Path(folder / Path(text).expanduser()).resolve()


def _validate(text: str, info: ValidationInfo) -> str:
    folder = info.context["folder"] if info.context else Path.cwd()
    return resolve_source(text, folder)


ModelSource = Annotated[str, AfterValidator(_validate)]
"""A `str` that is, once validated, an absolute path or an id on the hub."""
