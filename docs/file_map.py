"""Write the file map of docs/explanation/architecture.md from the docstrings of the modules.

usage: python docs/file_map.py
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = next(path.parent for path in ROOT.glob("src/*/__main__.py"))
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
BLOCK = re.compile(r"(<!-- file map: .*? -->\n).*(<!-- end of file map -->)", re.DOTALL)


def files() -> list[Path]:
    """Return the modules of the package, the user's part first; no empty package markers."""
    paths = [path for path in PACKAGE.rglob("*.py") if not _is_marker(path)]
    return sorted(paths, key=lambda path: (_in_engine(path), path.parent != PACKAGE, path))


def summary(path: Path) -> str:
    """Return the first sentence of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if path.name == "__main__.py" and not docstring:
        return f"`python -m {PACKAGE.name}`"
    if not docstring:
        assert not _in_engine(path), f"{path.relative_to(ROOT)} has no docstring"
        return ""
    first = " ".join(docstring.split("\n\n")[0].split())
    return first.split(". ")[0].removesuffix(".").replace("``", "`").replace("|", "\\|")


def table() -> Iterator[str]:
    yield "| file | what it holds |\n| --- | --- |\n"
    for path in files():
        yield f"| `{path.relative_to(PACKAGE)}` | {summary(path)} |\n"


def updated_page() -> str:
    """Return the text of the page with a new map."""
    page = PAGE.read_text(encoding="utf-8")
    assert BLOCK.search(page), f"{PAGE.name} has no place for the file map"
    return BLOCK.sub(lambda match: f"{match[1]}\n{''.join(table())}\n{match[2]}", page)


def _is_marker(path: Path) -> bool:
    """Return whether a file only marks a package: an ``__init__.py`` with only a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return path.name == "__init__.py" and len(tree.body) <= 1


def _in_engine(path: Path) -> bool:
    return "engine" in path.relative_to(PACKAGE).parts


if __name__ == "__main__":
    PAGE.write_text(updated_page(), encoding="utf-8")
