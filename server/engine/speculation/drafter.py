"""Which member drafts for a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fusion_kernels import Weighting
from server.config.speculation import AUTO, BASE

if TYPE_CHECKING:
    from server.engine.settings import FusionSettings

_BASE_NUMBER = 0


def with_drafter(settings: FusionSettings, draft: str, experts: Sequence[str]) -> FusionSettings:
    """The settings of a request for which `draft` speculates: `auto`, `base`, or the name of one of `experts`."""
    if draft == AUTO:
        return replace(settings, drafter=_own_drafter(settings))
    return replace(settings, drafter=_BASE_NUMBER if draft == BASE else 1 + experts.index(draft))


def _own_drafter(settings: FusionSettings) -> int:
    """The number of the member that is most like the fused model: the heaviest expert, or the base without any."""
    if settings.weighting is Weighting.NONE or not settings.experts:
        return _BASE_NUMBER
    if not settings.weighting.takes_alpha:
        return 1 + settings.experts[0]
    weight, expert = max(zip(settings.alpha, settings.experts, strict=True), key=lambda pair: pair[0])
    return 1 + expert if weight > 0 else _BASE_NUMBER
