"""Text of unknown origin, escaped for the place that it is written to."""

import csv
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import QUIET
from proj.engine import html
from proj.engine.cli import main
from proj.engine.escaping import csv_cell, visible
from proj.engine.runs.predictions import escape_formulas
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
@example("0,")
@example("a, b")
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
    assert len(out.splitlines()) == 6
    written = (work / "experiment.yaml").read_text()
    assert visible(written, keep="\n") == written
    experiment = yaml.safe_load(written)
    assert experiment["seed_everything"] == 0
    assert experiment["data"]["init_args"]["path"] == source
    cli("check", "--config", "experiment.yaml", "--trainer.accelerator", "cpu")


NAMES = {
    "class": "=HYPERLINK(1)\x1b[31m\n<script>alert(1)</script>\u202e",
    "column": "@a|`b`\x1b]0;t\x07<img src=x onerror=alert(1)>",
}


@pytest.fixture
def hostile_table(work: Path) -> list[str]:
    """Write a table with hostile names, and return the flags of an experiment for it."""
    chance = random.Random(0)
    with (work / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([NAMES["column"], "id", "y"])
        for row in range(160):
            table.writerow([chance.gauss(0, 1), f"=id{row}", NAMES["class"] if row % 2 else "no"])
    flags = "--data Tabular --data.path table.csv --data.target y --data.batch_size 16"
    flags += ' --data.columns {"id":"drop"}'
    flags += " --model BinaryClassifier --model.net MLP --model.net.hidden [4]"
    return [*flags.split(), *["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]]


def test_names_reach_no_place_unescaped(
    hostile_table: list[str], cli: Any, capsys: Any, work: Path
) -> None:
    """A class or a column would run a script, clear the screen, or reverse the words of a page."""
    for words in (["fit", *hostile_table], ["test"], ["runs"]):
        code = main([*words, *(QUIET if words[0] in ("fit", "test") else [])])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        assert visible(printed.out + printed.err, keep="\n") == printed.out + printed.err
    page = (work / "lightning_logs/version_0/report.html").read_text()
    assert visible(page, keep="\n") == page
    # Besides the page's own script, which the browser tells from others by its hash.
    assert "<script" not in page.replace(f"<script>{html.SCRIPT}</script>", "", 1)
    assert "<img src=x" not in page
    config = (work / "lightning_logs/version_0/config.yaml").read_text()
    assert visible(config, keep="\n") == config


def test_a_spreadsheet_computes_no_label_on_request(
    hostile_table: list[str], cli: Any, work: Path
) -> None:
    """A label of the training data would be a formula in the spreadsheet of the reader."""
    cli("fit", *hostile_table)
    flags = ["--data.predict_path", "table.csv", "--keep", f"id,{NAMES['column']}", "--output"]
    cli("predict", *flags, "as_is.csv")
    cli("predict", *flags, "escaped.csv", "--escape_formulas")
    as_is, escaped = (_cells(work / f"{name}.csv") for name in ("as_is", "escaped"))
    assert {row[1] for row in as_is[1:]} <= {NAMES["class"], "no"}
    assert [row[as_is[0].index("id")] for row in as_is[1:3]] == ["=id0", "=id1"]
    for plain_row, escaped_row in zip(as_is, escaped, strict=True):
        for plain, cell in zip(plain_row, escaped_row, strict=True):
            is_formula = plain[:1] in tuple("=+-@") and not _is_number(plain)
            assert cell == (f"'{plain}" if is_formula else plain)


@pytest.mark.parametrize("text", ["=1", "+a", "-2+3", "@x", "\t=1", "\r=1", "\n=1", "＝1"])
def test_texts_that_are_formulas_get_an_apostrophe(text: str) -> None:
    """A spreadsheet would compute the text."""
    table = pl.DataFrame({text: [text, None, "a=1", "-1.5e-3", ""], "n": [-1.5] * 5})
    assert csv_cell(text) == f"'{text}"
    assert escape_formulas(table).to_dict(as_series=False) == {
        f"'{text}": [f"'{text}", None, "a=1", "-1.5e-3", ""],
        "n": [-1.5] * 5,
    }


def _cells(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
