"""What the documentation shows: its configurations are valid, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.config.schema import Config
from server.config.structures import StructuresConfig
from server.config.traffic import AdmissionConfig, LimitsConfig
from tests.examples.pages import FENCE, PAGES, ROOT, blocks

CODE = ("server", "fusion_kernels", "evaluation", "training", "bench", "zoo")
FOLDERS = (*CODE, "deploy", "helm", "tests", "docs", "requirements")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_are_valid(page: Path) -> None:
    for block in blocks(page.read_text(), "yaml"):
        shown = yaml.safe_load(block)
        if isinstance(shown, dict) and {"large", "presets"} <= shown.keys():
            shown.pop("auth", None)  # names a file of the reader's own
            Config.model_validate(hub_ids(shown))


def hub_ids(shown: Any) -> Any:
    """Folders of the reader's own as ids of a hub, which nothing looks up here."""
    if isinstance(shown, dict):
        return {key: hub_ids(value) for key, value in shown.items()}
    return "reader/own" if isinstance(shown, str) and shown.startswith((".", "/")) else shown


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name}: {link}"


def test_every_page_is_in_an_index() -> None:
    """Or nobody finds it: not from docs/README.md, and not in the site's sidebar, which is made of it."""
    for folder in (ROOT / "docs", ROOT / "docs" / "decisions"):
        index = (folder / "README.md").read_text()
        assert [page.name for page in folder.glob("*.md") if f"]({page.name})" not in index] == ["README.md"]


def test_every_limit_is_explained_to_operators() -> None:
    """With its default, what the client sees, and which metric shows it."""
    page = (ROOT / "docs" / "operations.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    sections = (("admission", AdmissionConfig), ("limits", LimitsConfig), ("structures", StructuresConfig))
    for section, limits in sections:
        for name, field in limits.model_fields.items():
            default, *seen = next(row[1:] for row in rows if row[0].startswith(f"`{section}.{name}`"))
            if field.default is not None:
                shown = field.default if isinstance(field.default, str) else f"{field.default:g}"
                assert default == {8 * 1024 * 1024: "8 MiB", 32 * 1024 * 1024: "32 MiB"}.get(field.default, shown), name
            assert len(seen) == 2, name
            assert all(seen), name


def test_files_that_pages_name_are_there() -> None:
    """On the pages for those who change the code."""
    pages = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "docs/decisions")
    for page in PAGES:
        if not page.relative_to(ROOT).as_posix().startswith(pages):
            continue
        text = FENCE.sub(lambda fence: re.sub(r"[^\w./-]", " ", fence.group()), page.read_text())
        for path in re.findall(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[\w./-]*[\w/])", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_make_help_has_a_sentence_for_every_target() -> None:
    """Of those that are called by name."""
    makefile = (ROOT / "Makefile").read_text()
    targets = {name for line in re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE) for name in line.split()}
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {line.split()[1] for line in done.stdout.splitlines() if len(line.split()) > 2} == targets
