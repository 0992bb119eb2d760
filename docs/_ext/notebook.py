"""Parser for notebooks: cells and their stored outputs become a Markdown page."""

import json
import re
from typing import Any

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx


def markdown(notebook: dict[str, Any]) -> str:
    """Return a notebook as Markdown: text cells, code cells, and what the code printed."""
    blocks = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(source)
        elif source:
            blocks.append(f"```python\n{source}\n```")
            blocks += [f"```text\n{text}\n```" for text in map(_text, cell["outputs"]) if text]
    return "\n\n".join(blocks) + "\n"


def _text(output: dict[str, Any]) -> str:
    lines = output["text"] if "text" in output else output.get("data", {}).get("text/plain", "")
    # Remove terminal colors.
    return re.sub(r"\x1b\[[\d;]*m", "", "".join(lines)).rstrip()


class NotebookParser(MystParser):
    """Parse a notebook as the Markdown page it is equal to."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        super().parse(markdown(json.loads(inputstring)), document)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_source_parser(NotebookParser)
    return {"parallel_read_safe": True}
