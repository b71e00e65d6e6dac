"""Collects what a release carries: `release.py VERSION FOLDER` writes its notes, the chart and bills of materials."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLAVOURS = ("cpu", "cuda")


def notes(changelog: str, version: str) -> str:
    """Return the changelog's section of a version.

    Raises:
        SystemExit: there is none, or it still says that it is unreleased.
    """
    section = re.search(rf"^## {re.escape(version)}(.*)\n((?:.*\n)*?)(?=^## |\Z)", changelog, re.MULTILINE)
    if section is None:
        raise SystemExit(f"CHANGELOG.md has no section {version}")
    if "unreleased" in section[1]:
        raise SystemExit(f"CHANGELOG.md says that {version} is unreleased; put the date there")
    return section[2].strip() + "\n"


def pack_chart(version: str, folder: Path) -> Path:
    """Write the chart's archive as `helm package` would: with the files that its links point to."""
    archive = folder / f"logit-fusion-{version}.tgz"
    with tarfile.open(archive, "w:gz", dereference=True) as tar:
        tar.add(ROOT / "helm", "logit-fusion", filter=lambda entry: None if entry.name.endswith("/ci") else entry)
    return archive


def main(version: str, folder: Path) -> None:
    """Write everything into `folder`."""
    text = notes((ROOT / "CHANGELOG.md").read_text(), version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "notes.md").write_text(text)
    pack_chart(version, folder)
    for flavour in FLAVOURS:
        bill = folder / f"logit-fusion-{version}-{flavour}.cdx.json"
        lock = ROOT / f"requirements/{flavour}.lock"
        command = [sys.executable, "-m", "cyclonedx_py", "requirements", "--output-reproducible"]
        subprocess.run([*command, "--output-file", str(bill), str(lock)], check=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
