"""What the configuration may say of routing: a preset's router, how many experts that chooses, and what it mixes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from fusion_kernels import Weighting
from server.config.setting import SettingError
from server.config.source import beside

if TYPE_CHECKING:
    from server.config.presets import PresetConfig
    from server.config.schema import Config, ExpertConfig


def _router(text: str, info: ValidationInfo) -> str:
    path = beside(text, info)
    if not path.is_file() and not (info.context or {}).get("routers_to_be"):
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


def routed_names(experts: Mapping[str, ExpertConfig], chosen: Iterable[str]) -> list[str]:
    """What a router calls some experts: by their names, or by those of the parts of a mixture."""
    return [each for name in chosen for each in (experts[name].parts or (name,))]


def check_mixtures(config: Config) -> None:
    """Refuse mixtures where their model alone is meant, or where a router's class would be two things.

    Raises:
        SettingError: where one stands.
    """
    mixtures = {name for name, expert in config.experts.items() if expert.parts}
    for name, expert in config.experts.items():
        named: dict[str, set[str | None]] = {
            "use": {expert.use},
            "against": {expert.against},
            "merge": set(expert.merge or ()),
        }
        for key, others in named.items():
            for other in mixtures & others:
                raise SettingError(("experts", name, key), f"'{other}' is a mixture; name its model as an expert")
    for name, preset in config.presets.items():
        if preset.route is None or not config.experts.keys() >= set(preset.experts):
            continue
        [(known, times)] = Counter(routed_names(config.experts, preset.experts)).most_common(1)
        if times > 1:
            raise SettingError(("presets", name, "experts"), f"'{known}' stands in them twice: the router has it once")
