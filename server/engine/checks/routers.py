"""Routers beside the members that they choose: fitted for this base, and knowing the experts of their presets."""

from __future__ import annotations

from pathlib import Path

from server.config import Config
from server.config.routing import routed_names
from server.engine.members import Members, fetch_weights
from server.engine.routing.router import NONE, Router
from server.errors import ConfigError, nearest


def check_routers(config: Config, members: Members) -> None:
    """Refuse routers that would choose by chance.

    Raises:
        ConfigError: a file is no router, or one for another base, or it does not know a preset's expert.
    """
    routers = {file: Router.load(Path(file)) for file in config.routers}
    for name, preset in config.presets.items():
        if preset.route is None:
            continue
        router, where = routers[preset.route], f"presets.{name}.route"
        # Its weights are what it is known by, and on the hub they may not be here yet.
        fetch_weights(Members(members.needed_base, None, ()))
        try:
            router.check_base(Path(preset.route), members.needed_base.folder)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        known = [each for each in router.classes if each != NONE]
        asked = routed_names(config.experts, preset.experts)
        stranger = next((expert for expert in asked if expert not in known), None)
        if stranger is not None:
            raise ConfigError(f"{where}: {preset.route} does not know expert '{stranger}'; {nearest(stranger, known)}")
