"""The fusion in plain torch, on any device."""

from fusion_kernels.torch.fusion import fuse

__all__ = ["fuse"]
