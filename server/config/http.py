"""The section on the server's place on the network: its names, its path, and the browsers that may call it."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from server.config.section import Section, not_a_truth_value

ANY = "*"
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*\.?|\*")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?|\*|null")
_ROOT_PATH = re.compile(r"(/(?!\.\.?(/|$))[A-Za-z0-9._~-]+)+")
MAX_PORT = 65_535


def _host(name: str) -> str:
    if not _HOST.fullmatch(name):
        raise ValueError(f"'{name}' is not a host's name without scheme and port, such as models.example.com, or '*'")
    return name.lower().rstrip(".") or name


def _origin(origin: str) -> str:
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(f"'{origin}' is not an origin as browsers send it, such as https://app.example.com, or '*'")
    return origin


def _root_path(path: str) -> str:
    if not _ROOT_PATH.fullmatch(path):
        raise ValueError(f"'{path}' is not a path such as /fusion, without a slash at its end")
    return path


def _port(port: int) -> int:
    if not 0 < port <= MAX_PORT:
        raise ValueError(f"{port} is not a port's number, from 1 to {MAX_PORT}")
    return port


class HttpConfig(Section):
    """Where the server is on the network."""

    allowed_hosts: tuple[Annotated[str, AfterValidator(_host)], ...] | None = Field(
        None,
        description="The names under which clients may call the server, beside `localhost`, this machine's own name "
        "and IP addresses; `*.example.com` is every name below, `*` any. Other names in `Host` get 421, so that no web "
        "page can reach a server without keys by having its own name resolve to it. Default: no further names; where "
        "there are keys, any.",
    )
    cors_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        (),
        description="Web pages' origins, such as `https://app.example.com`, that browsers may let call the API; `*` is "
        "every page. Default: only pages of this server, such as the playground.",
    )
    root_path: Annotated[str, AfterValidator(_root_path)] | None = Field(
        None,
        description="The path under which a proxy shows the server, such as `/fusion`, whether the proxy takes it off "
        "or passes it on.",
    )
    metrics_port: Annotated[int, BeforeValidator(not_a_truth_value), AfterValidator(_port)] | None = Field(
        None,
        description="A port of its own for `/metrics`, which the API's port then no longer serves. `/metrics` asks for "
        "a key where the environment variable `LOGIT_FUSION_METRICS_KEY` has one, or several with commas.",
    )
    metrics_host: str | None = Field(
        None, description="The address that `metrics_port` listens on. Default: the API's, `--host`."
    )

    @model_validator(mode="after")
    def _host_of_a_port(self) -> Self:
        if self.metrics_host is not None and self.metrics_port is None:
            raise ValueError("metrics_host needs metrics_port: without it, /metrics is on the API's own address")
        return self
