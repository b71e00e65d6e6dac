"""Twin-Merging: what experts have in common as one model, and what each has beyond it as an adapter over that.

    W = merge(W_1 .. W_T),  B_t A_t = the nearest matrix of a rank to W_t - W      Lu et al. 2024, arXiv 2406.15479

For each request a router mixes the parts in: W + sum_t g_t B_t A_t (`server.engine.mixture`). Without compression, and
with shares g that add up to 1, the linear layers are the experts' weighted mean; all else is the merge's.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from server.errors import ConfigError
from training.compress import Compressed, load, write_adapter
from training.merge import merge, state_of

PARTS = "parts"
"""The folder of the parts, in that of the merge."""


def mix(
    base: Path, experts: Sequence[tuple[Path, float]], out: Path, rank: int, *, method: str, density: float, seed: int
) -> dict[str, Compressed]:
    """Write the merge of experts to `out`, and to its folder `parts` an adapter of this rank for each.

    Args:
        base: the folder of the model that all experts were fine-tuned from.
        experts: folders of models or adapters, and how much each counts in the merge. They name the parts.
        out: a new folder.
        rank: of each part's layers.
        method: of the merge, as its density and seed (`training.merge`).

    Returns:
        What came of each part, by its name.

    Raises:
        ConfigError: two experts have one name, one is not the base's, or `out` holds other things.
    """
    names = [folder.resolve().name for folder, _ in experts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two of the experts are called '{twice}'; their folders' names are the parts'")
    merge(base, experts, out, method=method, density=density, seed=seed)
    shared, before = load(out), load(base)
    try:
        return {
            name: write_adapter(out, shared, state_of(base, folder, before), out / PARTS / name, rank)
            for name, (folder, _) in zip(names, experts, strict=True)
        }
    except ConfigError:
        shutil.rmtree(out)  # else the next try would find it full
        raise
