"""The table of weightings, one row each: all else that names, offers, describes or checks a weighting reads it here.

The equations are in `fusion_kernels.reference`. Nothing slow is imported: the command line's help reads this too.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Literal, Self

Experts = Literal["none", "one", "any"]
Parameter = Literal["alpha", "alpha_max"]


class Weighting(IntEnum):
    """How a row weighs its experts; the values are those of the int8 tensor `kind`, and `str` gives the name.

    Attributes:
        experts: how many experts it takes; "any" means one at least.
        parameter: what sets its weights: "alpha", fixed ones, or "alpha_max", the largest that its search may choose.
        summary: what it is, in a few words for a menu.
        description: what it is, for the documentation and the help.
    """

    experts: Experts
    parameter: Parameter | None
    summary: str
    description: str

    # Any: type checkers would hold `Weighting(2)` against this signature too.
    def __new__(cls, *columns: Any) -> Self:
        """Make a row of the table; rows are numbered from 0, as the counters by weighting need it."""
        number = len(cls.__members__)
        row = int.__new__(cls, number)
        row._value_ = number
        row.experts, row.parameter, row.summary, row.description = columns
        return row

    NONE = "none", None, "large alone", "the large model alone"
    STATIC = "any", "alpha", "fixed", "fixed numbers, of any sign; 1.0 is proxy-tuning"
    KL = (
        "any",
        "alpha_max",
        "solved",
        "at every token the weight that moves the large model as far as fine-tuning moved the small one, "
        "solved exactly",
    )
    KL_GRID = "any", "alpha_max", "searched", "the objective of `kl` searched on the paper's grid (its Algorithm 1)"
    KL_SAFE = (
        "any",
        "alpha_max",
        "as far as sure",
        "beyond the paper: every expert by its own distance, and less of one that learned little or is unsure",
    )
    ALONE = "one", None, "one expert", "one expert's own distribution, to compare with"

    def __str__(self) -> str:
        """Return the name that configurations and requests use, such as `kl-safe`."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def named(cls, name: str) -> Weighting:
        """Return the weighting with a name such as `kl-safe`.

        Raises:
            KeyError: there is none.
        """
        return _BY_NAME[name]

    def as_dict(self) -> dict[str, str | None]:
        """Return the row as JSON shows it."""
        return {
            "name": str(self),
            "experts": self.experts,
            "parameter": self.parameter,
            "summary": self.summary,
            "description": self.description,
        }

    @property
    def takes_alpha(self) -> bool:
        """Whether its weights are given with the request."""
        return self.parameter == "alpha"

    @property
    def searches(self) -> bool:
        """Whether its weights are found anew at every token."""
        return self.parameter == "alpha_max"

    @property
    def fuses(self) -> bool:
        """Whether it adds deltas to the large model's logits, and so needs what its experts are compared with."""
        return self.parameter is not None


_BY_NAME = {str(weighting): weighting for weighting in Weighting}
NAMES = tuple(_BY_NAME)
"""The names of all weightings, in the order of the table."""
SEARCHING = " and ".join(", ".join(f"`{weighting}`" for weighting in Weighting if weighting.searches).rsplit(", ", 1))
"""The names of those that search, for sentences."""


def markdown_table() -> str:
    """Return the table as the documentation shows it."""
    lines = ["| `weighting` | the weights alpha |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{weighting}` | {weighting.description} |" for weighting in Weighting)])
