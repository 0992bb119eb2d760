"""Tag the version of pyproject.toml, with its notes from CHANGELOG.md.

usage: python scripts/release.py

Projects take a release with `python scripts/update.py --version v0.2.0`. Beforehand, set the
version in pyproject.toml, give its section of CHANGELOG.md a date, commit both, and wait for CI.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent


def stop(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def git(*words: str, text: str | None = None) -> str:
    """Run git with ``text`` as its input, and return its output."""
    done = subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, input=text, encoding="utf-8"
    )
    if done.returncode:
        stop(f"git {words[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def notes(version: str, changelog: str) -> str:
    """Return the section of a version."""
    header = rf"^## {re.escape(version)} \((.+)\)\n"
    if not (found := re.search(header, changelog, re.MULTILINE)):
        stop(f"CHANGELOG.md: expected a section `## {version} (DATE)`, found none; write it.")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", found[1]):
        stop(f"CHANGELOG.md: expected the date of {version}, got {found[1]}; write it.")
    return changelog[found.end() :].split("\n## ")[0].strip()


def main() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    version = settings["project"]["version"]
    text = notes(version, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    if git("status", "--porcelain"):
        stop("expected a clean working tree, got uncommitted changes; commit them.")
    tag = f"v{version}"
    if git("tag", "--list", tag):
        stop(f"expected a new version, {tag} exists; raise it in pyproject.toml.")
    # Headings begin with #, which git would take for comments.
    git("tag", "--annotate", "--cleanup=verbatim", "--file=-", tag, text=f"{tag}\n\n{text}\n")
    print(f"tagged {tag}; run: git push origin {tag}")


if __name__ == "__main__":
    main()
