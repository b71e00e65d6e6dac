"""What a request's `fusion` field means together with the preset that the request names."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_kernels import Weighting
from server.api.allowed import Allowed
from server.api.errors import RequestError
from server.api.field import FusionField
from server.config import Config, PresetConfig, WeightingName
from server.config.routing import tried_with
from server.config.setting import SettingError, check_setting
from server.engine.pairs import Pairs
from server.engine.settings import FusionSettings, Route
from server.engine.speculation.drafter import with_drafter
from server.errors import nearest


def resolve(field: FusionField | None, preset: PresetConfig, config: Config, allowed: Allowed) -> FusionSettings:
    """What a request asks of the engine: its `fusion` field over its preset.

    Raises:
        RequestError: the field does not fit the preset or the configured experts, or is not for the client's key.
    """
    if field is None:
        field = FusionField()
    if field.weighting is not None:
        allowed.check_weighting(field.weighting)
    weighting = field.weighting or preset.weighting
    experts = _experts(field, weighting, preset)
    routed = preset.route is not None and field.experts is None and bool(experts)
    for name in experts:
        allowed.check_expert(name, config)
    alpha = _alpha(field, weighting, experts, preset)
    try:
        check_setting(weighting, tried_with(weighting, experts, routed=routed), alpha)
    except SettingError as error:
        field_path = ".".join(("fusion", *error.field_path))
        raise RequestError(f"{field_path}: {error}", field_path) from None
    shares = _shares(field, experts, config, routed=routed)
    names, pairs = list(config.experts), Pairs(config)
    indices = tuple(names.index(name) for name in experts)
    settings = FusionSettings(
        weighting=Weighting.named(weighting),
        experts=indices,
        pairs=tuple(pairs.shared(expert) for expert in indices),
        alpha=() if alpha is None else tuple(alpha[name] if isinstance(alpha, dict) else alpha for name in experts),
        alpha_max=preset.alpha_max if field.alpha_max is None else field.alpha_max,
        # By identity: two presets may ask for the same.
        preset=next((i for i, other in enumerate(config.presets.values()) if other is preset), 0),
        trace_top=field.trace == "full",
        shares={names.index(name): of_parts for name, of_parts in shares.items()},
        route=_route(preset, weighting, config) if routed else None,
    )
    if config.speculation is None:
        if field.speculate:
            raise RequestError("fusion.speculate: this server's configuration has no `speculation`", "fusion.speculate")
        return settings
    if field.speculate is False:
        return settings
    return with_drafter(settings, config.speculation.draft, names, has_base=config.base is not None)


def _route(preset: PresetConfig, weighting: WeightingName, config: Config) -> Route:
    assert preset.route is not None
    top = 1 if Weighting.named(weighting).experts == "one" else preset.top
    return Route(config.routers.index(preset.route), None if top == "all" else top, "")


def _shares(field: FusionField, experts: Sequence[str], config: Config, *, routed: bool) -> dict[str, list[float]]:
    """Of each mixture, what the request says of its parts, in their order."""
    if field.parts and routed:
        raise RequestError(
            "fusion.parts: the preset's router chooses them; name the experts in fusion.experts", "fusion.parts"
        )
    found = {}
    for name, shares in (field.parts or {}).items():
        where = f"fusion.parts.{name[:100]}"
        known = {each: config.experts[each].parts for each in experts if config.experts[each].parts}
        if name not in known:
            hint = nearest(name, known) if known else "none of them is"
            raise RequestError(f"{where}: no expert of the request is a mixture of that name; {hint}", where)
        stranger = next((part for part in shares if part not in known[name]), None)
        if stranger is not None:
            raise RequestError(f"{where}: it has no part '{stranger[:100]}'; {nearest(stranger, known[name])}", where)
        found[name] = [shares.get(part, 0.0) for part in known[name]]
    return found


def _experts(field: FusionField, weighting: WeightingName, preset: PresetConfig) -> Sequence[str]:
    if field.experts is not None:
        return field.experts
    return () if Weighting.named(weighting).experts == "none" else preset.experts


def _alpha(
    field: FusionField, weighting: WeightingName, experts: Sequence[str], preset: PresetConfig
) -> float | dict[str, float] | None:
    if field.alpha is not None or not Weighting.named(weighting).takes_alpha:
        return field.alpha
    if isinstance(preset.alpha, dict):
        # A preset's numbers may name experts that this request leaves out.
        return {name: number for name, number in preset.alpha.items() if name in experts}
    return preset.alpha
