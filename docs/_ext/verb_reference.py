"""Directive ``verbs``: every verb of the command line with its flags."""

from typing import Any

import verb_tables
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Verbs(SphinxDirective):
    """Insert the reference of all verbs."""

    def run(self) -> list[Any]:
        return self.parse_text_to_nodes(verb_tables.markdown(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("verbs", Verbs)
    return {"parallel_read_safe": True}
