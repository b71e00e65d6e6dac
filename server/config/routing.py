"""What a preset may say of routing: the file of its router, and how many experts that may choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from fusion_kernels import Weighting
from server.config.setting import SettingError
from server.config.source import beside

if TYPE_CHECKING:
    from server.config.presets import PresetConfig


def _router(text: str, info: ValidationInfo) -> str:
    path = beside(text, info)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; `logit-fusion route fit` writes one")
    return str(path)


RouterFile = Annotated[str, AfterValidator(_router)]
Top = Annotated[int, Field(ge=1, strict=True)] | Literal["all"]


def tried_with(weighting: str, experts: Sequence[str], *, routed: bool) -> Sequence[str]:
    """The experts with which a setting is checked: where a router chooses one of them, any one."""
    return experts[:1] if routed and Weighting.named(weighting).experts == "one" else experts


def check_route(preset: PresetConfig) -> None:
    """Refuse what does not go together with a router, and what is for routers alone.

    Raises:
        SettingError: the part of the preset that is wrong.
    """
    takes = Weighting.named(preset.weighting).experts
    if preset.route is None:
        if preset.top != 1:
            raise SettingError(("top",), "it is how many experts a router may choose; name one under `route`")
        return
    if takes == "none" or not preset.experts:
        raise SettingError(
            ("route",), "a router chooses among the preset's experts: it needs `experts`, and a weighting"
        )
    if takes == "one" and preset.top != 1:
        raise SettingError(("top",), f"weighting '{preset.weighting}' takes one expert; so 1, not {preset.top}")
    if preset.prompts:
        raise SettingError(("prompts",), "the experts that a router chooses read the request's prompt")
