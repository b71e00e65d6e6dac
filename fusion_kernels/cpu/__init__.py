"""The fusion on the CPU in numba, and the tools for such code: `vector` and `threads`."""

from fusion_kernels.cpu.launch import fuse, warm_up

__all__ = ["fuse", "warm_up"]
