"""Which member drafts for a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fusion_kernels import Weighting
from server.config.speculation import AUTO, BASE
from server.engine.settings import BASE as BASE_NUMBER

if TYPE_CHECKING:
    from server.engine.settings import FusionSettings


def with_drafter(settings: FusionSettings, draft: str, experts: Sequence[str], *, has_base: bool) -> FusionSettings:
    """The settings of a request for which `draft` speculates: `auto`, `base`, or the name of one of `experts`."""
    if draft == AUTO or settings.route is not None:
        drafter = _own_drafter(settings)
        return replace(settings, drafter=None if drafter == BASE_NUMBER and not has_base else drafter)
    return replace(settings, drafter=BASE_NUMBER if draft == BASE else 1 + experts.index(draft))


def _own_drafter(settings: FusionSettings) -> int:
    """The number of the member that is most like the fused model: the heaviest expert, or the base without any."""
    if settings.weighting is Weighting.NONE or not settings.experts or settings.route is not None:
        return BASE_NUMBER
    if not settings.weighting.takes_alpha:
        member = settings.pairs[0].expert
    else:
        weight, member = max(
            ((weight, pair.expert) for weight, pair in zip(settings.alpha, settings.pairs, strict=True)),
            key=lambda found: found[0],
        )
        member = member if weight > 0 else BASE_NUMBER
    return member if member >= 0 else BASE_NUMBER  # the large model, which would draft at its own price
