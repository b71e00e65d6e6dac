"""How the minimum of the objective along one delta is searched, and the numbers that every implementation shares.

L(x) = (f - a)^2 + (g - b)^2 with f = x A'(x) - A(x) and g = A(x) - x A'(0), A(x) = log sum_v P_v exp(x delta_v).
f and g rise with x (f' = x A'' and g' = A' - A'(0)), which gives a bracket and a bound:

1. A sweep gives A, A', A'' at nine points of the bracket [0, alpha_max]. In a cell between two points (f, g) stays in a
   box, and its distance from (a, b) bounds L from below: cells that cannot hold the minimum drop out.
2. In the cells that are left A is interpolated by a quintic. Where that cannot be trusted (deltas so large that A'' is
   a row of spikes) the sweep is repeated on what is left of the bracket, at most `LEVELS` times.
3. Newton on L', kept in its bracket by bisection, starts from the interpolated minimum; one or two steps are enough.

Tolerance: L is within 1e-4 of the least L, relative, or 1e-6, absolute, as far as float32 sums resolve it. Weights that
are equally good to a millionth give the smallest: 0 where nothing is to be gained.
"""

import torch
from torch import Tensor

CELLS = 8
MESH = 8
LEVELS = 6
NEWTON_STEPS = 12
# Too wide to interpolate: a cell whose A'' at the ends disagrees with its A and A' by this share of what f gains in it.
ROUGH = 1.0
# ... but a gain of this much, in nats, is too small for the sums to tell.
FLOOR = 1e-6
# What is left to gain is negligible below this share of L, or this much of it.
RELATIVE = 1e-5
ABSOLUTE = 1e-11
# A weight other than 0 must lower L by this share.
MARGIN = 1e-6
# Of experts that do equally well the first is taken: a later one must lower L by this share, and this much. Two that
# are compared with the large model do so at weight 1, where the fused model is the one or the other.
LEAD_SHARE = 1e-3
LEAD = 1e-6
# A row is swept by powers while its largest tilted weight is below exp(TAME) of the top one.
TAME = 60.0

# Algorithm 1 of the paper searches alpha in {0.0, 0.1, .., 2.0} instead.
GRID_STEPS_PER_UNIT = 10
GRID_POINTS = 21


def hermite(device: torch.device) -> tuple[Tensor, Tensor]:
    """[6, MESH + 1] quintic Hermite basis on [0, 1] and its slopes: value, slope, curvature left, then right."""
    s = torch.arange(MESH + 1, dtype=torch.float64, device=device) / MESH
    basis = [
        1 - 10 * s**3 + 15 * s**4 - 6 * s**5,
        s - 6 * s**3 + 8 * s**4 - 3 * s**5,
        0.5 * s**2 - 1.5 * s**3 + 1.5 * s**4 - 0.5 * s**5,
        10 * s**3 - 15 * s**4 + 6 * s**5,
        -4 * s**3 + 7 * s**4 - 3 * s**5,
        0.5 * s**3 - s**4 + 0.5 * s**5,
    ]
    slopes = [
        -30 * s**2 + 60 * s**3 - 30 * s**4,
        1 - 18 * s**2 + 32 * s**3 - 15 * s**4,
        s - 4.5 * s**2 + 6 * s**3 - 2.5 * s**4,
        30 * s**2 - 60 * s**3 + 30 * s**4,
        -12 * s**2 + 28 * s**3 - 15 * s**4,
        1.5 * s**2 - 4 * s**3 + 2.5 * s**4,
    ]
    return torch.stack(basis), torch.stack(slopes)
