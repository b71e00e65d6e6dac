"""The file that keeps the names of loaded adapters: for the next start, and for servers that share it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from server.config.load import read_mapping
from server.errors import ConfigError


class Listing:
    """Names of adapters, and the paths that they are loaded from, in a YAML file that may not exist yet."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> dict[str, str]:
        """Paths by name.

        Raises:
            ConfigError: the file cannot be read, or holds something else.
        """
        if not self._file.exists() or not self._file.stat().st_size:
            return {}
        needed = "a mapping of adapters' names to paths is needed"
        listed = read_mapping(self._file, needed)
        if not all(isinstance(path, str) for path in listed.values()):
            raise ConfigError(f"{self._file}: {needed}")
        return {str(name): path for name, path in listed.items()}

    def note(self, name: str, path: str | None) -> None:
        """Write that an adapter is loaded from a path, or (`None`) no longer is.

        Raises:
            ConfigError: the file cannot be read.
            OSError: it cannot be written.
        """
        with self._alone():
            listed = self.read()
            listed.pop(name, None)
            if path is not None:
                listed[name] = path
            written = self._file.with_name(f".{self._file.name}.new")
            written.write_text(yaml.safe_dump(listed, sort_keys=False), encoding="utf-8")
            os.replace(written, self._file)

    @property
    def stamp(self) -> tuple[int, int] | None:
        """Another one whenever the file has been written; `None` while there is none."""
        try:
            state = self._file.stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_ino

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other server writes the file meanwhile."""
        with open(self._file.with_name(f".{self._file.name}.lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
