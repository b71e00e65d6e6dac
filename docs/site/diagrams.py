"""Mermaid's diagrams, drawn when the site is built: nothing is fetched or run where they are read."""

from __future__ import annotations

import mermaidx
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

# Labels as SVG's own text. A path must not be broken: the widest has 30 letters.
CONFIG = {"htmlLabels": False, "flowchart": {"htmlLabels": False, "wrappingWidth": 300}}


def setup(app: Sphinx) -> None:
    """Draw what a fence named `mermaid` says."""
    app.add_directive("mermaid", Mermaid)


class Mermaid(SphinxDirective):
    """One diagram, as SVG in the page; one that is wrong is a warning, which ends the build."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Draw it.

        Raises:
            docutils.utils.SystemMessage: Mermaid does not understand it.
        """
        try:
            drawn = mermaidx.render("\n".join(self.content), theme="neutral", config=CONFIG).svg()
        except Exception as error:
            raise self.error(f"mermaid: {error}") from error
        return [nodes.raw("", f'<div class="diagram">{drawn}</div>', format="html")]
