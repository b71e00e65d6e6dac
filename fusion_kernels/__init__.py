"""Logit fusion on tensors: per row, find the experts' weights by the paper's objective and write the fused logits."""

from fusion_kernels.dispatch import fuse_logits, warm_up
from fusion_kernels.weighting import Fused, Weighting

__all__ = ["Fused", "Weighting", "fuse_logits", "warm_up"]
