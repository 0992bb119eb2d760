"""Rename the package: folder, imports, configs, console script and documents.

usage: python scripts/rename.py NAME

Only files that git tracks are changed, and of these neither data nor recorded runs.
"""

import keyword
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
OLD = next(path.parent.name for path in ROOT.glob("src/*/__main__.py"))
# CSV and JSON files are left out, because they may be data that contain the name as a value.
CODE_AND_TEXT = {
    *("", ".cfg", ".css", ".html", ".in", ".ini", ".ipynb", ".j2", ".js", ".md", ".py", ".pyi"),
    *(".rst", ".sh", ".toml", ".txt", ".yaml", ".yml"),
}
RUNS = "lightning_logs"
LINE_LENGTH = 100
# Folders of data, which may be text or YAML. `src/*/data` is code.
DATA = ("data", "datasets")


def stop(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name) or find_spec(name):
        stop(
            "expected a new name of lower-case letters, digits and _, that no installed package "
            f"has, got {name!r}"
        )


def files_to_change() -> list[Path]:
    """Return the tracked files that hold code or text."""
    try:
        command = ["git", "ls-files", "-z"]
        listed = subprocess.run(
            command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        stop(
            f"expected a git repository, so that only tracked files are changed, got {ROOT}; "
            "run: git init && git add ."
        )
    names = [Path(name) for name in listed.stdout.split("\0") if name]
    return [
        ROOT / name
        for name in names
        if name.suffix in CODE_AND_TEXT
        and RUNS not in name.parts
        and name.parts[0] not in DATA
        and (ROOT / name).is_file()
    ]


def allow_longer_lines(files: list[Path]) -> None:
    """Tell the linter to accept long lines if the new name makes some: `ruff format` splits code,
    but neither texts nor comments.
    """
    code = [path.read_text(encoding="utf-8") for path in files if path.suffix == ".py"]
    settings = ROOT / "pyproject.toml"
    text = settings.read_text(encoding="utf-8")
    if any(len(line) > LINE_LENGTH for part in code for line in part.splitlines()):
        text = text.replace("\nignore = [\n", '\nignore = [\n    "E501",  # the longer name\n', 1)
        settings.write_text(text, encoding="utf-8")


def main() -> None:
    if len(sys.argv) != 2:
        stop("expected one argument: python scripts/rename.py NAME")
    name = sys.argv[1]
    check_name(name)
    word = re.compile(rf"\b{OLD}\b")
    files = files_to_change()
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        # Environment variables begin with the name in upper case.
        renamed = text.replace(f"{OLD.upper()}_", f"{name.upper()}_")
        if (renamed := word.sub(name, renamed)) != text:
            path.write_text(renamed, encoding="utf-8")
    allow_longer_lines(files)
    (ROOT / "src" / OLD).rename(ROOT / "src" / name)
    print(
        f"Renamed {OLD} to {name}. Delete .venv and src/*.egg-info and install the package again, "
        "or run: make format test"
    )
    print("Existing runs name the old classes: use them in a clone made before, or train again.")


if __name__ == "__main__":
    main()
