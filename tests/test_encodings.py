"""Text files have an encoding of their own, whatever the locale of the process."""

import ast
from collections.abc import Iterator

import pytest

from conftest import ROOT

# Calls that read or write text, with the position of their mode; None for those without one.
TEXT_CALLS = {"open": 1, "fdopen": 1, "read_text": None, "write_text": None, "TemporaryFile": 0}
NOT_FILES = ("os", "Image", "tarfile", "webbrowser")
PROGRAMS = [path for folder in ("src", "scripts", "docs") for path in (ROOT / folder).rglob("*.py")]


def without_encoding(source: str) -> Iterator[int]:
    """Yield the lines that open text without an encoding."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if isinstance(keywords.get("text"), ast.Constant):
            yield node.lineno
        function = node.func
        is_method = isinstance(function, ast.Attribute)
        name = function.attr if is_method else getattr(function, "id", "")
        owner = getattr(function.value, "id", "") if is_method else ""
        if name not in TEXT_CALLS or "encoding" in keywords:
            continue
        if name == "open" and owner in NOT_FILES:
            continue
        if name.endswith("_text") and not is_method:
            continue  # a function of ours
        place = TEXT_CALLS[name]
        if place is not None:
            is_path = name == "open" and is_method
            arguments = node.args[place - is_path :]
            mode = keywords.get("mode") or (arguments[0] if arguments else None)
            if isinstance(mode, ast.Constant) and "b" in str(mode.value):
                continue
            if mode is None and name == "TemporaryFile":
                continue  # binary by default
        yield node.lineno


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("path.read_text()", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.open()", True),
        ("path.open('rb')", False),
        ("open(path, 'w')", True),
        ("open(path, 'wb')", False),
        ("os.fdopen(1, 'w')", True),
        ("subprocess.run(['ls'], text=True)", True),
        ("Image.open(path)", False),
        ("TemporaryFile()", False),
        ("TemporaryFile('w+')", True),
        ("read_text(source)", False),
    ],
)
def test_the_search_finds_text_without_an_encoding(source: str, found: bool) -> None:
    assert bool(list(without_encoding(source))) == found


def test_every_text_file_is_opened_with_an_encoding() -> None:
    lines = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in PROGRAMS
        for line in without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert not lines
