"""Mistakes in a YAML file are one message with the line."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from proj.engine.config.yaml_file import read_yaml
from proj.errors import UserError

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MISTAKES = [
    ("trainer: " + "[" * 3000 + "]" * 3000, "line 1: nested more than 100 levels deep"),
    ("a: 1\nb: " + "{a: " * 3000 + "1" + "}" * 3000, "line 2: nested more than 100 levels deep"),
    ("\n".join("  " * i + f"k{i}:" for i in range(1500)), "line 100: nested more than 100"),
    (LAUGHS, "more than 100,000 values, with those of aliases"),
    ("a: &a [*a]", "line 1: an alias stands inside its own value"),
    ("a: &a {b: {c: *a}}", "line 1: an alias stands inside its own value"),
    ("a: *b", "line 1: found undefined alias 'b'"),
    ("a: 1\nb: 2\na: 3", "line 3: the key a is already in line 1; keep one of them"),
    ("a: {b: 1, b: 2}", "line 1: the key b is already in line 1"),
    (f"a: {'9' * 6000}", "line 1: expected a number of at most 64 bits, got 9999"),
    (f"\n\na: {2**63}", "line 3: expected a number of at most 64 bits, got 9223372036854775808"),
    (f"a: 0x{'f' * 17}", "line 1: expected a number of at most 64 bits"),
    ("a: 1:30", "line 1: expected a decimal number, got 1:30"),
    ("a: 016", "line 1: expected a decimal number, got 016"),
    ("a: 0b11", "line 1: expected a decimal number, got 0b11"),
    ("a: 2020-13-45", "line 1: expected texts, numbers, lists and sections, got a date"),
    ("a: 2020-01-02", "line 1: expected texts, numbers, lists and sections, got a date"),
    ("a: !!binary aGk=", "got binary data"),
    ("a: !!set {b, c}", "line 1: expected texts, numbers, lists and sections"),
    ("a: !!python/object/apply:os.getcwd []", "line 1: expected texts, numbers"),
    ("? [a, b]\n: 1", "line 1: while constructing a mapping found unhashable key"),
    ("a:\n\tb: 1", "line 2: while scanning for the next token found character '\\t' that"),
    ("a: [1", "line 1: while parsing a flow sequence expected ',' or ']'"),
    ("a: 1\n---\nb: 2", "line 2: expected a single document"),
    ("a: 1\nb: \0", "line 2: the character #x0000 is not allowed"),
    (b"a: 1\n# \xe9\n", "line 2: invalid continuation byte in UTF-8; save it as UTF-8"),
    ("a: 1".encode("utf-16"), "line 1: invalid start byte in UTF-8; save it as UTF-8"),
]


@pytest.mark.parametrize(("content", "message"), MISTAKES)
def test_a_mistake_is_one_message_with_the_line(content: str | bytes, message: str) -> None:
    path = Path("c.yaml")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    start = time.process_time()
    with pytest.raises(UserError) as raised:
        read_yaml(path)
    assert time.process_time() - start < 5
    assert str(raised.value).startswith("c.yaml is not valid YAML: line ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "hello",
        "a: [1, -2, +3, 0, 1_000, 0x1f, 1.5, .inf, 1e-3, true, null, text, 'x: y']",
        "a: &a {b: 1}\nc: *a\nd: {<<: *a, b: 2}",
        f"a: {2**63 - 1}",
        "7: a\ntrue: b\nnull: c",
        "a: größe\n\nb: |\n  two\n  lines\n",
        "\ufeffa: 1",
    ],
)
def test_other_files_are_read_as_pyyaml_reads_them(text: str) -> None:
    path = Path("c.yaml")
    path.write_text(text, encoding="utf-8")
    expected: Any = yaml.safe_load(text.removeprefix("\ufeff"))
    assert read_yaml(path) == expected
