"""What a request's `fusion` field means together with the preset that the request names."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_kernels import Weighting
from server.api.allowed import Allowed
from server.api.errors import RequestError
from server.api.field import FusionField
from server.config import Config, PresetConfig, WeightingName
from server.engine.settings import FusionSettings
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
    experts = _experts(field, weighting, preset, config, allowed)
    alpha = _alpha(field, weighting, experts, preset)
    names = list(config.experts)
    return FusionSettings(
        weighting=Weighting.named(weighting),
        experts=tuple(names.index(name) for name in experts),
        alpha=alpha,
        alpha_max=preset.alpha_max if field.alpha_max is None else field.alpha_max,
        # By identity: two presets may ask for the same.
        preset=next((i for i, other in enumerate(config.presets.values()) if other is preset), 0),
        trace_top=field.trace == "full",
    )


def _experts(
    field: FusionField, weighting: WeightingName, preset: PresetConfig, config: Config, allowed: Allowed
) -> Sequence[str]:
    where = "fusion.experts"
    asked = preset.experts if field.experts is None else field.experts
    for name in asked:
        allowed.check_expert(name, config)
        if list(asked).count(name) > 1:
            raise RequestError(f"{where}: '{name}' is named twice", where)
    if weighting == "none":
        if field.experts:
            raise RequestError(
                f"{where}: weighting 'none' runs the large model only; leave experts out or choose another weighting",
                where,
            )
        return ()
    if not asked:
        raise RequestError(
            f"{where}: weighting '{weighting}' needs at least one expert; available: {', '.join(allowed.experts)}",
            where,
        )
    if weighting == "alone" and len(asked) != 1:
        raise RequestError(f"{where}: weighting 'alone' needs exactly one expert, not {len(asked)}", where)
    return asked


def _alpha(
    field: FusionField, weighting: WeightingName, experts: Sequence[str], preset: PresetConfig
) -> tuple[float, ...]:
    where = "fusion.alpha"
    if weighting != "static":
        if field.alpha is not None:
            raise RequestError(f"{where}: only weighting 'static' takes it; this request's is '{weighting}'", where)
        return ()
    alpha = preset.alpha if field.alpha is None else field.alpha
    if alpha is None:
        raise RequestError(f"{where}: weighting 'static' needs a number, or a number for each expert", where)
    if not isinstance(alpha, dict):
        return (alpha,) * len(experts)
    for name in alpha:
        # A preset's numbers may name experts that this request leaves out.
        if name not in experts and field.alpha is not None:
            raise RequestError(
                f"{where}: '{name}' is no expert of this request; {nearest(name, experts)}", f"{where}.{name}"
            )
    missing = next((name for name in experts if name not in alpha), None)
    if missing is not None:
        raise RequestError(f"{where}: a number for expert '{missing}' is missing", where)
    return tuple(alpha[name] for name in experts)
