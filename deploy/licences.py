"""Prints the licence of every locked package: `licences.py LOCK`, in an environment where they are installed."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path


def licence(name: str) -> str:
    """Return what a package says its licence is: the SPDX expression, else the classifiers, else its own words."""
    said = metadata(name)
    if expression := said.get("License-Expression"):
        return expression
    classifiers = [entry for entry in said.get_all("Classifier", []) if entry.startswith("License :: ")]
    # "License :: OSI Approved" alone names none.
    classified = [entry.rpartition(" :: ")[2] for entry in classifiers if entry != "License :: OSI Approved"]
    # Some write the whole text there: its first line is the name.
    words = said.get("License", "").strip().splitlines()
    if classified or words:
        return "; ".join(classified) or words[0].strip()
    return f"not named; its text: {said.get('License-File', 'missing')}"


def main(lock: Path) -> None:
    """Print name, version and licence, one package a line, tab-separated."""
    for line in lock.read_text().splitlines():
        name, _, version = line.partition("==")
        try:
            print(name, version, licence(name), sep="\t")
        except PackageNotFoundError:
            print(name, version, "not installed here", sep="\t")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
