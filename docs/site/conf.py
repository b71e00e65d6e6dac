"""The site that `make docs` builds: the repository's Markdown as it is, by Sphinx, MyST and Furo."""

from __future__ import annotations

import sys
from pathlib import Path

from pygments.lexers import JsonLexer
from sphinx.application import Sphinx

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

project = "logit-fusion"
root_doc = "README"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "examples/README.md",
    "docs/*.md",
    "docs/decisions/*.md",
]
# Sphinx walks what is not excluded: a virtual environment has 100,000 files.
READ = ("docs", "examples")
exclude_patterns = [folder.name for folder in ROOT.iterdir() if folder.is_dir() and folder.name not in READ]

extensions = ["myst_parser", "navigation", "sources", "diagrams"]
myst_heading_anchors = 6  # the anchors that GitHub gives
myst_fence_as_directive = ["mermaid"]
highlight_language = "none"

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_show_copyright = False
# A summary under a result is fetched, which browsers refuse for files.
html_show_search_summary = False
html_theme_options = {"navigation_with_keys": True}


def setup(app: Sphinx) -> None:
    """Colour a fence that GitHub knows and Pygments does not."""
    app.add_lexer("jsonl", JsonLexer)
