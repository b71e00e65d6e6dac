"""Packages that only some commands need."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from server.errors import ConfigError


def check_needs(packages: Sequence[str], what: str) -> None:
    """Refuse to go on without packages of the extra `train`.

    Raises:
        ConfigError: some are not installed; the message says how they would be.
    """
    missing = [package for package in packages if find_spec(package.partition(".")[0]) is None]
    if missing:
        raise ConfigError(
            f"{what} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed here: "
            "make setup-train in a checkout, or pip install 'logit-fusion[train]'"
        )
