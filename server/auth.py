"""API keys: who is asking, and what the key allows.

Keys come from a YAML file, which holds their SHA-256 only, and from the environment. The file is read again when it
changes; a file that has become unreadable leaves the keys as they were.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BeforeValidator, Field, StringConstraints, ValidationError, model_validator

from server.config.section import Section, not_a_truth_value
from server.config.strict_yaml import parse
from server.errors import ConfigError
from server.options import KEY_VARIABLE

logger = logging.getLogger(__name__)

METRICS_ENVIRONMENT = "LOGIT_FUSION_METRICS_KEY"
# How often the file's modification time is looked at, at most.
RELOAD_SECONDS = 1.0

Positive = Annotated[float, BeforeValidator(not_a_truth_value), Field(gt=0, allow_inf_nan=False)]


class Client(Section):
    """Who is asking: one entry of the keys file."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Shown in logs; fair queueing and rate limits go by it. Keys that share a name are one client."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] = ""
    weight: Positive = 1.0
    """The share of the engine that this client gets when all are busy, relative to the others'."""
    priority: int = 0
    """The most urgent `priority` that this client's requests may have; lower is more urgent."""
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    admin: Annotated[bool, Field(strict=True)] = False
    """Whether this client may load and unload adapters."""
    presets: tuple[str, ...] | None = None
    """The presets that this client may use; all if left out."""


ANYBODY = Client(name="anybody")
"""The client of every request where no keys are configured."""


class _File(Section):
    keys: tuple[Client, ...]

    @model_validator(mode="after")
    def _complete(self) -> _File:
        for client in self.keys:
            if not client.sha256:
                raise ValueError(f"key '{client.name}' lacks sha256 (printf %s \"$KEY\" | sha256sum)")
        return self


class Keys:
    """The configured keys.

    Raises:
        ConfigError: the file cannot be read or is not valid.
    """

    def __init__(self, path: Path | None, environment: str | None = None) -> None:
        self._path = path
        self._from_environment = _clients(KEY_VARIABLE, environment, "env")
        self._for_metrics = _clients(METRICS_ENVIRONMENT, None, "metrics")
        self._clients: tuple[Client, ...] = ()
        self._stamp: tuple[int, int, int] | None = None
        self._checked = 0.0
        if path is not None:
            self._clients, self._stamp = _read(path), _stamp(path)

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return self._path is not None or bool(self._from_environment)

    @property
    def required_for_metrics(self) -> bool:
        """Whether `/metrics` needs a key, one of its own."""
        return bool(self._for_metrics)

    def client(self, key: str) -> Client | None:
        """The client that `key` belongs to. Takes the same time for every key that is not known."""
        self._reload()
        return _find(key, (*self._from_environment, *self._clients))

    def metrics_client(self, key: str) -> Client | None:
        """Who may read the metrics with `key`; in the same time, too."""
        return _find(key, self._for_metrics)

    def _reload(self) -> None:
        now = time.monotonic()
        if self._path is None or now - self._checked < RELOAD_SECONDS:
            return
        self._checked = now
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._clients = _read(self._path)
            logger.warning("%s was read again: %d keys", self._path.name, len(self._clients))
        except (ConfigError, OSError) as error:
            logger.error("the keys stay as they were: %s", error)


def _clients(variable: str, given: str | None, name: str) -> tuple[Client, ...]:
    """The keys in an environment variable, separated by commas, unless they are `given`."""
    text = os.environ.get(variable, "") if given is None else given
    keys = filter(None, map(str.strip, text.split(",")))
    return tuple(Client(name=f"{name}-{number}", sha256=_digest(key)) for number, key in enumerate(keys, start=1))


def _find(key: str, clients: Iterable[Client]) -> Client | None:
    digest = _digest(key)
    found = None
    for client in clients:
        if hmac.compare_digest(client.sha256, digest):
            found = client
    return found


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int, int]:
    # Kubernetes changes a mounted secret by exchanging a link, so the time alone does not tell.
    state = path.stat()
    return state.st_mtime_ns, state.st_ino, state.st_size


def _read(path: Path) -> tuple[Client, ...]:
    try:
        data = parse(path.read_text(encoding="utf-8"))
        return _File.model_validate(data).keys
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        # PyYAML's message would quote the line, and with it somebody's key.
        raise ConfigError(f"{path}: not valid YAML, or a key in it occurs twice") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        message = re.sub(r"^Value error, ", "", first["msg"])
        raise ConfigError(f"{path}: {field}: {message}") from None
