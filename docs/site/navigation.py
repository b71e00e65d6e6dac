"""The sidebar is docs/README.md: its headings, and below each the pages in the order of its links."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

INDEX = "docs/README"
HEADING_OR_LINK = re.compile(r"^## (?P<heading>.+)$|\]\((?P<page>[^)\s:#]+)\.md\)", re.MULTILINE)


def setup(app: Sphinx) -> None:
    """Have what Sphinx reads mended, and the front page named as browsers ask for it."""
    app.connect("source-read", _mend_source)
    app.connect("build-finished", _name_front_page)


def _mend_source(app: Sphinx, page: str, source: list[str]) -> None:
    if page == "CHANGELOG":
        source[0] = f"---\nnosearch: true\n---\n{source[0]}"  # it has every word, and would come first
    elif page == app.config.root_doc:
        index = Path(app.srcdir, f"{INDEX}.md")
        source[0] += _contents(index, app.srcdir, [INDEX])
    elif page != INDEX and page.endswith("/README") and page.startswith("docs/"):
        source[0] += _contents(Path(app.srcdir, f"{page}.md"), Path(app.srcdir, page).parent, [])


def _contents(index: Path, folder: Path, first: list[str]) -> str:
    """Tables of contents, for a page in `folder`, of the pages that `index` links to from its own folder or below."""
    captions = {"": first}
    pages = captions[""]
    for found in HEADING_OR_LINK.finditer(index.read_text()):
        if found["heading"]:
            pages = captions.setdefault(found["heading"], [])
        else:
            pages.append(os.path.relpath(index.parent / found["page"], folder))
    return "".join(_table(caption, pages) for caption, pages in captions.items() if pages)


def _table(caption: str, pages: list[str]) -> str:
    return "\n".join(["\n\n```{toctree}", ":hidden:", f":caption: {caption}" if caption else "", "", *pages, "```", ""])


def _name_front_page(app: Sphinx, fault: Exception | None) -> None:
    if fault is None:
        shutil.copy(Path(app.outdir, f"{app.config.root_doc}.html"), Path(app.outdir, "index.html"))
