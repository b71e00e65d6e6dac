"""Collects what a release carries: `release.py VERSION FOLDER` writes its notes, the chart and bills of materials.

`release.py --sbom LOCK FILE` writes the bill of materials of one lock alone.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLAVOURS = ("cpu", "cuda")


def notes(changelog: str, version: str) -> str:
    """Return the changelog's section of a version.

    Raises:
        SystemExit: there is none, or it still says that it is unreleased.
    """
    section = re.search(rf"^## {re.escape(version)}(?= |$)(.*)\n((?:.*\n)*?)(?=^## |\Z)", changelog, re.MULTILINE)
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


def bill_of_materials(lock: Path, file: Path) -> None:
    """List what a lock installs, in CycloneDX's format."""
    # It warns that the locks, which are flat, do not say who needs whom.
    command = [sys.executable, "-W", "ignore::UserWarning", "-m", "cyclonedx_py", "requirements"]
    command += ["--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible", "--output-file", str(file)]
    subprocess.run([*command, str(lock)], check=True)


def main(version: str, folder: Path) -> None:
    """Write everything into `folder`.

    Raises:
        SystemExit: the changelog or the package speaks of another version.
    """
    text = notes((ROOT / "CHANGELOG.md").read_text(), version)
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if packaged != version:
        raise SystemExit(f"pyproject.toml and helm/Chart.yaml have version {packaged}, not {version}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "notes.md").write_text(text)
    pack_chart(version, folder)
    for flavour in FLAVOURS:
        bill_of_materials(ROOT / f"requirements/{flavour}.lock", folder / f"logit-fusion-{version}-{flavour}.cdx.json")


if __name__ == "__main__":
    if sys.argv[1] == "--sbom":
        bill_of_materials(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(sys.argv[1], Path(sys.argv[2]))
