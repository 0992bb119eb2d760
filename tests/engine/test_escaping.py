"""Text of unknown origin, escaped for the place that it is written to."""

import csv
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proj.engine.escaping import visible
from proj.engine.yaml_text import yaml_document, yaml_key, yaml_value

# A line break and a key, terminal sequences, a reversed reading direction, other line breaks.
HOSTILE = [
    "yes\nseed_everything: 7 #",
    "a\r\nseed_everything: 7\r",
    "\x1b]0;title\x07\x1b[2J",
    "a\u202eb\u2066",
    "a\x85seed_everything: 7",
    "a\u2028b\u2029c\ufeff",
    "{{ 7 }} {% raw %} # & * ! | > ' \" ` <b>",
    "- [a, b]: {c}",
    "",
    "null",
    "x" * 1500,
]

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def test_hidden_characters_become_visible() -> None:
    """A name would move the cursor, set the title of the window, or reverse the words after it."""
    assert visible("a\tb\r\n") == r"a\tb\r\n"
    assert visible("a\tb\n", keep="\n") == "a\\tb\n"
    assert visible("\x1b]0;t\x07\x9b") == r"\x1b]0;t\x07\x9b"
    assert visible("\u202e\u2066\u200b\ufeff\udc80") == r"\u202e\u2066\u200b\ufeff\udc80"
    # Words, combining marks, emoji with joiners and spaces of other scripts stay as they are.
    for text in ("Größe in m²", "می\u200cخواهم", "👩\u200d🔬", "10\u00a0000", "e\u0301"):
        assert visible(text) == text


@given(PLAIN)
def test_values_are_yaml_on_one_line(value: Any) -> None:
    """A value would become several keys, or be read back as another value."""
    text = yaml_value(value)
    assert len(text.splitlines()) == 1
    assert visible(text) == text
    assert yaml.safe_load(text) == value
    assert yaml.safe_load(f"[{text}, 1]") == [value, 1]
    document = yaml_document({"key": value})
    assert visible(document, keep="\n") == document
    assert yaml.safe_load(document) == {"key": value}


@pytest.mark.parametrize("name", HOSTILE)
def test_keys_are_yaml(name: str) -> None:
    """A column's name would become several keys, or make the file unreadable."""
    assert yaml.safe_load(f"{yaml_key(name)} drop\nother: 1") == {name: "drop", "other": 1}


@pytest.mark.parametrize("text", HOSTILE[:7])
def test_init_writes_names_as_values(text: str, cli: Any, work: Path) -> None:
    """A class, a column or a file of another person would write keys of the experiment."""
    text = text.replace('"', "")  # polars reads quotes in the first line of a table doubled
    folder = "".join(char for char in text if char not in "/[{*")
    (work / folder).mkdir()
    source, chance = f"{folder}/{folder[:9]}.csv", random.Random(0)
    with (work / source).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["a", f"id {text}", f"y {text}"])
        for row in range(120):
            table.writerow([chance.gauss(0, 1), f"id{row}", f"c {text}" if row % 3 else "no"])
    out = cli("init", source, "--target", f"y {text}", "--output", "experiment.yaml")
    assert visible(out, keep="\n") == out
    assert len(out.splitlines()) == 5
    written = (work / "experiment.yaml").read_text()
    assert visible(written, keep="\n") == written
    experiment = yaml.safe_load(written)
    assert experiment["seed_everything"] == 0
    assert experiment["data"]["init_args"]["path"] == source
    cli("check", "--config", "experiment.yaml", "--trainer.accelerator", "cpu")
