"""Logit fusion on tensors: per row, find the experts' weights by the paper's objective and write the fused logits."""

from typing import TYPE_CHECKING, Any

from fusion_kernels.weighting import Weighting

if TYPE_CHECKING:
    from fusion_kernels.batch import Fused
    from fusion_kernels.dispatch import fuse_logits, warm_up

__all__ = ["Fused", "Weighting", "fuse_logits", "warm_up"]


def __getattr__(name: str) -> Any:
    """Import torch when the first tensor is in sight: who only asks which weightings there are need not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fusion_kernels import batch, dispatch

    return getattr(batch if name == "Fused" else dispatch, name)
