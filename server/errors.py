"""Errors that a user can mend: each says in one line what was wrong, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(Exception):
    """The configuration, or a model that it names, cannot be served as it is."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Say which of the `valid` names was probably meant, or list them all."""
    names = list(valid)
    close = difflib.get_close_matches(name[:100], names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"valid names: {', '.join(names)}" if names else "none is defined"


class ServerError(Exception):
    """The server cannot start here: the address is taken, or the engine fails on this machine."""
