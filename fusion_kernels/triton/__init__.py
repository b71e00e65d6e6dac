"""The fusion on a GPU in Triton: four kernels, launched as scan, advance, advance, finish, write.

Each row is cut into chunks of `CHUNK` ids, one program each; a program leaves its sums in memory, and the last one of a
row (`merging.arrive`) draws the conclusions. `scan` looks at all members and makes the first sweep; `advance` makes one
pass more of every search that needs it; what still is not done then, which is rare, `finish` does with one program a
search; `write` writes the fused logits. No program waits for another, and what there is to do is decided on the GPU.
"""

from fusion_kernels.triton.launch import fuse

__all__ = ["fuse"]
