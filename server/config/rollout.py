"""Presets that try others out: `split` shares requests out between several, `shadow` scores one beside another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from server.config.adapters import is_spare
from server.config.section import Section, not_a_truth_value
from server.config.setting import SettingError
from server.errors import nearest

if TYPE_CHECKING:
    from server.config.presets import PresetConfig
    from server.config.schema import Config

SUM_TOLERANCE = 1e-6


def _share(value: float) -> float:
    if not 0.0 < value <= 1.0:
        raise ValueError(f"a share above 0 and up to 1 is needed here, not {value:g}")
    return value


def _whole(shares: dict[str, float]) -> dict[str, float]:
    # Not `>`, which NaN would pass; but no share is NaN.
    if not math.isclose(total := sum(shares.values()), 1.0, abs_tol=SUM_TOLERANCE):
        raise ValueError(f"the shares come to {total:.6g}; they must come to 1")
    return shares


Share = Annotated[float, BeforeValidator(not_a_truth_value), AfterValidator(_share)]
Shares = Annotated[dict[str, Share], AfterValidator(_whole)]
Sticky = Literal["key", "user", "none"]


class ShadowConfig(Section):
    """Which preset answers, and which one is scored on what it said."""

    answer: str = Field(description="The preset that answers.")
    beside: str = Field(description="The preset that is scored on the answers, when they are complete.")
    share: Share = Field(1.0, description="The share of the answers that are scored.")


def check_rollout(preset: PresetConfig) -> None:
    """Refuse what does not go together with `split` and `shadow`.

    Raises:
        SettingError: the part of the preset that is wrong.
    """
    if preset.split is not None and preset.shadow is not None:
        raise SettingError(("shadow",), "a preset that splits has no shadow; one of the two is needed")
    if preset.split is None and "sticky" in preset.model_fields_set:
        raise SettingError(("sticky",), "it is how a split chooses; name its presets and their shares under `split`")
    kind = "split" if preset.split is not None else "shadow"
    own = next((name for name in preset.model_fields_set if name not in ("split", "sticky", "shadow")), None)
    if preset.arms and own is not None:
        raise SettingError((own,), f"a preset with `{kind}` answers by others, whose own it is; leave it out")


def check_arms(config: Config, preset: PresetConfig) -> None:
    """Refuse a preset that names others which are not there, or cannot stand in its place.

    Raises:
        SettingError: the part of the preset that is wrong.
    """
    for name in preset.split or ():
        _check_arm(config, ("split", name), name)
    shadow = preset.shadow
    if shadow is None:
        return
    for side, name in (("answer", shadow.answer), ("beside", shadow.beside)):
        where = ("shadow", side)
        arm = _check_arm(config, where, name)
        if arm.route is not None:
            raise SettingError(where, f"'{name}' routes: no text can be scored before its router has chosen")
        own = next((expert for expert in arm.experts if any(config.own_cache(expert))), None)
        if own is not None:
            raise SettingError(where, f"expert '{own}' of '{name}' has prompts of its own; its texts cannot be scored")
    mode = str(config.engine.get("logprobs_mode", "raw_logprobs"))
    if config.engine.get("max_logprobs") == 0 or not mode.endswith("logprobs"):
        raise SettingError(("shadow",), "it needs logprobs; engine.max_logprobs or engine.logprobs_mode leaves it none")


def _check_arm(config: Config, where: tuple[str, ...], name: str) -> PresetConfig:
    settings = [other for other, preset in config.presets.items() if not preset.arms and not is_spare(other)]
    if name not in config.presets or is_spare(name):
        raise SettingError(where, f"there is no preset '{name}'; {nearest(name, settings)}")
    if name not in settings:
        raise SettingError(where, f"'{name}' answers by other presets itself; name those")
    return config.presets[name]
