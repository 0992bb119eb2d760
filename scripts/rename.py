"""Rename the package: folder, imports, configs, console script and docs.

usage: python scripts/rename.py NAME
"""

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
OLD = next(path.parent.name for path in ROOT.glob("src/*/__main__.py"))
LEFT_ALONE = {".git", ".venv", "lightning_logs", "__pycache__"}  # and whatever is not text


def stop(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    if len(sys.argv) != 2:
        stop("expected one argument: python scripts/rename.py NAME")
    name = sys.argv[1]
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name) or find_spec(name):
        stop(
            f"expected a new name of lower-case letters, digits and _, that no installed package has, got {name!r}"
        )
    word = re.compile(rf"\b{OLD}\b")
    for path in sorted(ROOT.rglob("*")):
        if path.is_file() and not LEFT_ALONE & set(path.relative_to(ROOT).parts):
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            if word.search(text):
                path.write_text(word.sub(name, text), encoding="utf-8")
    (ROOT / "src" / OLD).rename(ROOT / "src" / name)
    print(
        f"{OLD} is {name} now. Delete .venv and src/*.egg-info, then install it anew, or run: make format test"
    )
    print("Runs made before name the old classes: keep a clone to use them, or train them again.")


if __name__ == "__main__":
    main()
