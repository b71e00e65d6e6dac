"""What a fusion setting may be: the one check of presets, of requests over their presets, and of the evaluation's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Tag

from fusion_kernels.weighting import NAMES, Weighting
from server.config.section import not_a_truth_value
from server.errors import nearest

if TYPE_CHECKING:
    WeightingName = str
else:
    WeightingName = Literal[NAMES]
"""The name of a `Weighting`."""

WEIGHTING = " ".join(f"`{weighting}`: {weighting.description}." for weighting in Weighting)
"""What a weighting is, for the configuration's reference and the API's."""

FIXED = " or ".join(f"'{weighting}'" for weighting in Weighting if weighting.takes_alpha)
"""The weightings that take `alpha`, for sentences."""

ALPHA_LIMIT = 100.0


def _alpha(value: float) -> float:
    if not math.isfinite(value) or abs(value) > ALPHA_LIMIT:
        raise ValueError(f"a finite number between -{ALPHA_LIMIT:g} and {ALPHA_LIMIT:g} is needed here, not {value:g}")
    return value


def _alpha_max(value: float) -> float:
    if not 0.0 < value <= ALPHA_LIMIT:
        raise ValueError(f"a number above 0 and up to {ALPHA_LIMIT:g} is needed here, not {value:g}")
    return value


Alpha = Annotated[float, BeforeValidator(not_a_truth_value), AfterValidator(_alpha)]
Alphas = Annotated[
    Annotated[Alpha, Tag("number")] | Annotated[dict[str, Alpha], Tag("numbers")],
    Discriminator(lambda value: "numbers" if isinstance(value, dict) else "number"),
]
AlphaMax = Annotated[float, BeforeValidator(not_a_truth_value), AfterValidator(_alpha_max)]


class SettingError(ValueError):
    """A weighting, its experts and its numbers do not fit together.

    Attributes:
        field_path: the part that is wrong, from the setting down, such as `("alpha", "red")`.
    """

    def __init__(self, field_path: tuple[str, ...], message: str) -> None:
        """Keep the path beside the message."""
        super().__init__(message)
        self.field_path = field_path


def check_setting(weighting: WeightingName, experts: Sequence[str], alpha: float | dict[str, float] | None) -> None:
    """Refuse what does not fit together; each part alone is already what it must be.

    Raises:
        SettingError: what is wrong with which part.
    """
    _check_experts(weighting, experts)
    check_alpha(weighting, alpha)
    if not isinstance(alpha, dict):
        return
    stranger = next((name for name in alpha if name not in experts), None)
    if stranger is not None:
        raise SettingError(("alpha", stranger), f"'{stranger}' is none of the experts; {nearest(stranger, experts)}")
    missing = next((name for name in experts if name not in alpha), None)
    if missing is not None:
        raise SettingError(("alpha",), f"a number for expert '{missing}' is missing")


def check_alpha(weighting: WeightingName, alpha: float | dict[str, float] | None) -> None:
    """Refuse numbers that the weighting does not take, and a weighting without the numbers that it needs.

    Raises:
        SettingError: which of the two.
    """
    if Weighting.named(weighting).takes_alpha:
        if alpha is None:
            raise SettingError(("alpha",), f"weighting '{weighting}' needs a number, or {{expert: number}}")
    elif alpha is not None:
        raise SettingError(("alpha",), f"only weighting {FIXED} takes it; this one is '{weighting}'")


def _check_experts(weighting: WeightingName, experts: Sequence[str]) -> None:
    where, takes = ("experts",), Weighting.named(weighting).experts
    repeated = next((name for name in experts if list(experts).count(name) > 1), None)
    if repeated is not None:
        raise SettingError(where, f"'{repeated}' is named twice")
    if takes == "none" and experts:
        raise SettingError(
            where, f"weighting '{weighting}' runs the large model only; leave experts out or choose another weighting"
        )
    if takes == "one" and len(experts) != 1:
        raise SettingError(where, f"weighting '{weighting}' needs exactly one expert, not {len(experts)}")
    if takes == "any" and not experts:
        raise SettingError(where, f"weighting '{weighting}' needs at least one expert; without experts it is 'none'")
