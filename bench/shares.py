"""How sure a share of hits is."""

from __future__ import annotations

import math


def wilson(hits: int, number: int) -> tuple[float, float]:
    """The interval of 95 % around a share (Wilson 1927)."""
    z, p = 1.96, hits / number
    centre, half = p + z * z / (2 * number), z * math.sqrt(p * (1 - p) / number + z * z / (4 * number**2))
    return max(0.0, (centre - half) / (1 + z * z / number)), min(1.0, (centre + half) / (1 + z * z / number))
