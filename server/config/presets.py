"""What a preset of the configuration may say."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from fusion_kernels.weighting import SEARCHING
from server.config.prompts import SidePrompts
from server.config.rollout import ShadowConfig, Shares, Sticky, check_rollout
from server.config.routing import RouterFile, Top, check_route, tried_with
from server.config.section import Section, fault
from server.config.setting import (
    ALPHA_LIMIT,
    WEIGHTING,
    AlphaMax,
    Alphas,
    SettingError,
    WeightingName,
    check_setting,
)

PRESET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _preset_name(name: str) -> str:
    if not PRESET_NAME.fullmatch(name):
        raise ValueError(
            f"'{name}' is not a preset name: a letter or digit, then letters, digits, '.', '_' or '-', "
            "64 characters at most"
        )
    return name


PresetName = Annotated[str, AfterValidator(_preset_name)]


class PresetConfig(Section):
    """One name in `/v1/models`: which experts steer the large model, and how."""

    experts: tuple[str, ...] = Field((), description="The experts that steer, by name. `none` takes none, `alone` one.")
    weighting: WeightingName = Field(
        "kl",
        description=WEIGHTING,
    )
    alpha: Alphas | None = Field(
        None,
        description="Only for `static`, which needs it: one number for all experts, or `{expert: number}` for each; "
        f"any sign, {ALPHA_LIMIT:g} at most.",
    )
    alpha_max: AlphaMax = Field(
        2.0, description=f"The largest weight that {SEARCHING} may choose, {ALPHA_LIMIT:g} at most."
    )
    prompts: dict[str, SidePrompts] = Field(
        {}, description="By expert, prompts of their own as under `experts.NAME.prompt`, for this preset."
    )
    route: RouterFile | None = Field(
        None,
        description="A router that `logit-fusion route fit` wrote: of `experts`, those steer a request that its prompt "
        "asks for, or none of them.",
    )
    top: Top = Field(1, description="How many experts the router may choose for a request, or `all`.")

    split: Shares | None = Field(
        None,
        description="In the place of all of the above: other presets and their shares of the requests, as in "
        "`{a: 0.9, b: 0.1}`.",
    )
    sticky: Sticky = Field(
        "key",
        description="Whose requests a split sends the same way. `key`: a client's; where there are no keys, as `user`. "
        "`user`: those that name the same `safety_identifier`, `user` or `prompt_cache_key`; others as `key`. `none`: "
        "nobody's, each request is drawn.",
    )
    shadow: ShadowConfig | None = Field(
        None, description="In the place of all of the above: a preset that answers, and one that is scored beside it."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            check_rollout(self)
            if self.arms:
                return self
            check_route(self)
            tried = tried_with(self.weighting, self.experts, routed=self.route is not None)
            check_setting(self.weighting, tried, self.alpha)
        except SettingError as error:
            raise fault(error.field_path, str(error)) from None
        return self

    def alpha_of(self, expert: str) -> float | None:
        """Return the fixed weight of one of this preset's experts; None unless the weighting is `static`."""
        return self.alpha[expert] if isinstance(self.alpha, dict) else self.alpha

    @property
    def arms(self) -> tuple[str, ...]:
        """The presets that answer in the place of this one; none where it has a setting of its own."""
        if self.shadow is not None:
            return (self.shadow.answer,)
        return tuple(self.split or ())
