"""Looks up the known vulnerabilities of every pinned package in PyPI's advisories: `audit.py REQUIREMENTS`.

A mirror of PyPI has packages, but no advisories. pip-audit says then of the first package that it does not exist; so
the advisories of one that does are asked for beforehand.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request

KNOWN = "https://pypi.org/pypi/requests/2.32.3/json"
SECONDS = 30


def reach_advisories() -> None:
    """Ask for the advisories of one package.

    Raises:
        SystemExit: there is no answer, or it names none.
    """
    try:
        with urllib.request.urlopen(KNOWN, timeout=SECONDS) as answer:
            found = "vulnerabilities" in json.load(answer)
    # No connection, a status such as 404, or something that is not JSON.
    except (OSError, ValueError) as error:
        raise SystemExit(f"Nothing was audited: PyPI's advisories cannot be reached ({KNOWN}: {error})") from error
    if not found:
        raise SystemExit(f"Nothing was audited: {KNOWN} names no vulnerabilities")


def main(requirements: str) -> int:
    """Return pip-audit's exit code."""
    reach_advisories()
    # Strict: a package that cannot be looked up is a failure too.
    options = ["--strict", "--no-deps", "--disable-pip", "--requirement", requirements]
    return subprocess.run([sys.executable, "-m", "pip_audit", *options], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
