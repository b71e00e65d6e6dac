"""The fusion on a GPU in Triton."""

from fusion_kernels.triton.launch import fuse

__all__ = ["fuse"]
