"""Configuration of the documentation site. ``make docs`` builds it into ``docs/_build``."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "docs"), str(ROOT / "docs" / "_ext")]

project = "proj"
author = "the authors"
copyright = author

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "verb_reference",
    "notebook",
]
source_suffix = {".md": "markdown", ".ipynb": "notebook"}
exclude_patterns = ["_build"]

# Links to headings (`page.md#heading`) are checked, down to the third level.
myst_heading_anchors = 3

# Flags such as --config stay as they are.
smartquotes = False

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_rtype = False

html_theme = "furo"
html_title = "proj"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
