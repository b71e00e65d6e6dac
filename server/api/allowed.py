"""What a client's key lets it use and see: all there is, or its presets and what they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fusion_kernels.weighting import NAMES, Weighting
from server.api.errors import RequestError
from server.auth import Client
from server.config import Config, WeightingName
from server.errors import nearest


@dataclass(frozen=True)
class Allowed:
    """Names in the configuration's order. A preset brings its experts and its weighting, for the `fusion` field too."""

    presets: tuple[str, ...]
    experts: tuple[str, ...]
    weightings: tuple[WeightingName, ...]

    @classmethod
    def to(cls, client: Client, config: Config) -> Allowed:
        """What `client` may use of what `config` has."""
        if client.presets is None:
            return cls(config.named_presets, config.named_experts, NAMES)
        presets = [name for name in config.presets if name in client.presets]
        settings = [config.presets[arm] for name in presets for arm in config.arms(name)]
        experts = {expert for preset in settings for expert in preset.experts}
        weightings = {preset.weighting for preset in settings}
        return cls(
            tuple(presets),
            tuple(name for name in config.experts if name in experts),
            tuple(name for name in NAMES if name in weightings),
        )

    def preset(self, asked: str | None, config: Config) -> str:
        """The name of the preset that answers: the one that was asked for, or the first.

        Raises:
            RequestError: there is none of that name, or it is not for this key.
        """
        if asked:
            _check("model", "preset", asked, self.presets, asked in config.named_presets)
        elif not self.presets:
            raise RequestError("model: your key's presets are none of this server's", "model", HTTPStatus.FORBIDDEN)
        return asked or self.presets[0]

    def check_expert(self, name: str, config: Config) -> None:
        """Refuse an expert that there is not, or that is not for this key.

        Raises:
            RequestError: which of the two.
        """
        _check("fusion.experts", "expert", name, self.experts, name in config.named_experts)

    def check_weighting(self, name: WeightingName) -> None:
        """Refuse a weighting that is not for this key.

        Raises:
            RequestError: it is not.
        """
        _check("fusion.weighting", "weighting", name, self.weightings, True)

    def members(self, members: dict[str, Any]) -> dict[str, Any]:
        """What `/v1/fusion/experts` shows of all `members`: the experts and presets of this key."""
        names = ("large", "base", *self.experts)
        shown = [member for member in members["members"] if member["name"] in names]
        presets = {name: preset for name, preset in members["presets"].items() if name in self.presets}
        return members | {
            "members": shown,
            "presets": presets,
            "weightings": [Weighting.named(name).as_dict() for name in self.weightings],
        }


def _check(where: str, what: str, name: str, allowed: tuple[str, ...], exists: bool) -> None:
    if name in allowed:
        return
    if not exists:
        message = f"{where}: there is no {what} {name!r:.100}; {nearest(name, allowed)}"
        raise RequestError(message, where, HTTPStatus.NOT_FOUND)
    raise RequestError(
        f"{where}: your key does not allow {what} {name!r:.100}; it allows: {', '.join(allowed) or 'none'}",
        where,
        HTTPStatus.FORBIDDEN,
    )
