"""Cards that are not in this machine: their memory and its bandwidth, by their makers' data sheets."""

from __future__ import annotations

import re
from typing import NamedTuple

from server.errors import ConfigError, nearest


class Card(NamedTuple):
    """One accelerator."""

    gib: int
    """Memory, as the maker names it."""
    gb_per_s: int
    """Bandwidth of that memory, in 10^9 bytes a second."""


CARDS = {
    "A10G-24GB": Card(24, 600),
    "A100-40GB": Card(40, 1_555),
    "A100-80GB": Card(80, 2_039),
    "B200-180GB": Card(180, 8_000),
    "H100-80GB": Card(80, 3_350),
    "H200-141GB": Card(141, 4_800),
    "L4-24GB": Card(24, 300),
    "L40S-48GB": Card(48, 864),
    "MI300X-192GB": Card(192, 5_300),
    "RTX3090-24GB": Card(24, 936),
    "RTX4090-24GB": Card(24, 1_008),
}
_SPELLED = re.compile(r"(?:(?P<count>[1-9][0-9]?)x)?(?P<name>\S+)")


class Devices(NamedTuple):
    """Some cards of one kind, over which the members are split by tensor parallelism."""

    number: int
    name: str
    card: Card

    def __str__(self) -> str:
        """Return it as it is asked for, such as `8xH100-80GB`."""
        return f"{self.number}x{self.name}"


def devices(spelled: str) -> Devices:
    """Return what `8xH100-80GB` or `L4-24GB` names.

    Raises:
        ConfigError: no such card is known here.
    """
    found = _SPELLED.fullmatch(spelled.strip())
    names = {name.lower(): name for name in CARDS}
    asked = found["name"] if found else spelled
    name = names.get(asked.lower())
    if found is None or name is None:
        raise ConfigError(f"--device {spelled}: there is no card '{asked}' here; {nearest(asked, CARDS)}")
    return Devices(int(found["count"] or 1), name, CARDS[name])
