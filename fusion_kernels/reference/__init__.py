"""The float64 oracle, row by row, beside the paper's equations: slow, and what all tests compare with."""

from fusion_kernels.reference.equations import divergences, grid, kl, minimise, objective, search_grid, trust
from fusion_kernels.reference.rows import Row, broken, fuse

__all__ = ["Row", "broken", "divergences", "fuse", "grid", "kl", "minimise", "objective", "search_grid", "trust"]
