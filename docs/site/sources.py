"""A link to a file of the repository that is no page leads to a page that shows the file."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx

FOLDER = "files"


def setup(app: Sphinx) -> None:
    """MyST makes downloads of such links; make pages of them."""
    shown: set[str] = set()
    app.connect("doctree-resolved", lambda app, tree, page: _lead_to_pages(app, tree, page, shown))
    app.connect("html-collect-pages", lambda app: _pages(app, shown))


def _lead_to_pages(app: Sphinx, tree: nodes.document, page: str, shown: set[str]) -> None:
    for link in tree.findall(addnodes.download_reference):
        path = link["reftarget"]
        file = Path(app.srcdir, path.lstrip("/")) if path.startswith("/") else Path(app.srcdir, page).parent / path
        name = file.resolve().relative_to(app.srcdir).as_posix()
        shown.add(name)
        address = app.builder.get_relative_uri(page, f"{FOLDER}/{name}")
        link.replace_self(nodes.reference("", "", *link.children, refuri=address, internal=True))


def _pages(app: Sphinx, shown: set[str]) -> Iterator[tuple[str, dict[str, Any], str]]:
    for name in sorted(shown):
        try:
            language = get_lexer_for_filename(name).aliases[0]
        except ClassNotFound:
            language = "none"
        text = Path(app.srcdir, name).read_text()
        body = f"<h1>{html.escape(name)}</h1>\n{app.builder.highlighter.highlight_block(text, language, linenos=False)}"
        yield f"{FOLDER}/{name}", {"title": name, "body": body, "parents": []}, "page.html"
