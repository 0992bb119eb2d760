"""Words, blanks and spaces in files, and rows from Python: what counts as missing is counted."""

import csv
import zipfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import polars as pl
import pytest
import torch

from conftest import Cli
from proj.data.base import Finding
from proj.data.tabular.datamodule import Tabular

ROWS = 120
CITIES = ["Oslo", " Oslo", "Bergen", "NA", "", "  ", "None", "?"]
FILE = {
    "num": [f"{v:.2f}" for v in np.random.default_rng(0).normal(size=ROWS)],
    "dose": ["NA" if i % 10 == 0 else "" if i % 12 == 5 else str(i) for i in range(ROWS)],
    "price": [f"$1,{100 + i}.50" for i in range(ROWS)],
    "city": [CITIES[i % 8] for i in range(ROWS)],
    "flag": [["true", "False", "NA"][i % 3] for i in range(ROWS)],
    "when": [["01/31/2018", "02/15/2019", "", "NA"][i % 4] for i in range(ROWS)],
    "code": [f"{i % 7:05}" for i in range(ROWS)],
    "y": [["a", "b"][i % 2] for i in range(ROWS)],
}


def write(quoting: Any = csv.QUOTE_MINIMAL) -> None:
    with open("t.csv", "w", newline="") as file:
        writer = csv.writer(file, quoting=quoting)
        writer.writerows([list(FILE), *zip(*FILE.values(), strict=True)])


def ready(path: str = "t.csv", **options: Any) -> Tabular:
    data = Tabular(path, "y", **options)
    data.prepare_data()
    data.setup("fit")
    return data


def finding_of(data: Tabular, part: str) -> Finding:
    (found,) = [finding for finding in data.findings if part in finding.what]
    return found


def test_words_and_blanks_that_count_as_missing_are_counted() -> None:
    """In some files NA is a category, such as "no alley"; without a word it became missing."""
    write()
    data = ready()
    words = finding_of(data, "words for missing values").what
    counts = {name: sum(v in ("NA", "None", "?") for v in FILE[name]) for name in FILE}
    total = sum(counts.values())
    ordered = sorted((n for n in counts if counts[n]), key=lambda name: -counts[name])
    listed = ", ".join(f"{name} {counts[name]}" for name in ordered)
    assert words.startswith(f"{total} values of 4 columns ({listed}) are words for missing values")
    assert words.endswith(": 'NA' (97), 'None' (15), '?' (15)")
    # An empty field without quotes is no text.
    blanks = finding_of(data, "empty texts").what
    assert blanks == "15 values of column city are empty texts or spaces"
    merged = "2 values of column city differ only in outer spaces, in 30 rows, such as ' Oslo' and"
    assert finding_of(data, "outer spaces").what.startswith(merged)
    assert data.schema is not None
    city = next(column for column in data.schema.columns if column.name == "city")
    assert city.categories == ("Bergen", "Oslo")


def test_a_column_without_words_has_no_finding() -> None:
    """Empty fields and outer spaces that merge nothing need no word."""
    text = "".join(
        f"{i if i % 9 else ''}, {'red' if i % 2 else 'blue'},{i % 2}\n" for i in range(99)
    )
    Path("t.csv").write_text("n,c,y\n" + text)
    assert [f.what for f in ready(columns={"n": "number", "c": "category"}).findings] == []


def test_columns_without_a_name_are_named() -> None:
    """The name that they get is in the experiment and in predictions."""
    Path("t.csv").write_text(
        ",x,y\n" + "".join(f"{i % 5 / 4},{i / 8},{i % 2}\n" for i in range(60))
    )
    finding = finding_of(ready(), "no name")
    assert finding.what == "1 column of t.csv has no name"
    assert finding.effect == "the name is column_1"


def rows_of_file() -> dict[str, Any]:
    with open("t.csv", newline="") as file:
        dicts = list(csv.DictReader(file))
    return {
        "texts": pl.read_csv("t.csv", infer_schema=False),
        "typed": pl.read_csv("t.csv", schema_overrides={"code": pl.String}),
        "dicts": dicts,
        "columns": {name: [row[name] for row in dicts] for name in FILE},
    }


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_rows_from_python_equal_those_of_the_verb(quoting: Any) -> None:
    """`predict` reads the file as text; Python code reads it in other ways."""
    write(quoting)
    data = ready(predict_path="t.csv")
    data.setup("predict")
    expected, schema = data.splits["predict"].x, data.schema
    assert schema is not None
    assert isinstance(expected, dict)
    given = rows_of_file()
    found = {name: Tabular.encode(rows, schema) for name, rows in given.items()}
    single = [Tabular.encode(row, schema) for row in given["dicts"][:24]]
    found["one by one"] = {kind: torch.cat([row[kind] for row in single]) for kind in expected}
    for name, x in found.items():
        for kind, values in expected.items():
            rows = len(x[kind])
            assert rows in (ROWS, 24)
            assert torch.equal(x[kind].nan_to_num(-9), values[:rows].nan_to_num(-9)), (name, kind)
    for nothing in ([], {name: [] for name in FILE}, given["texts"].head(0)):
        x = Tabular.encode(nothing, schema)
        assert {kind: tuple(values.shape) for kind, values in x.items()} == {
            "numeric": (0, len(schema.numeric)),
            "categorical": (0, len(schema.categorical)),
        }


def test_words_of_a_table_with_types_are_categories(cli: Cli) -> None:
    """A Parquet file has missing values of its own, and NA may be a country."""
    words = [["NA", "DE", "", "FR "][i % 4] for i in range(80)]
    pl.DataFrame({"c": words, "y": [i % 2 for i in range(80)]}).write_parquet("t.parquet")
    data = ready("t.parquet", val_fraction=0.0, test_fraction=0.0)
    assert data.schema is not None
    assert data.schema.columns[0].categories == ("", "DE", "FR ", "NA")
    assert not any("missing" in finding.effect for finding in data.findings)
    x = Tabular.encode([{"c": word} for word in words], data.schema)["categorical"]
    assert torch.equal(x, data.splits["train"].x["categorical"])


# Excel


def write_workbook(path: str, rows: list[list[Any]]) -> None:
    """Write the smallest workbook that holds the rows; None is an empty cell."""

    def cell(value: Any) -> str:
        if value is None:
            return "<c/>"
        if isinstance(value, bool):
            return f'<c t="b"><v>{int(value)}</v></c>'
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t xml:space="preserve">{escape(value)}</t></is></c>'
        return f"<c><v>{value}</v></c>"

    lines = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    types = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        '<Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{types}.sheet.main+xml"/>'
        f'<Override PartName="/xl/sheet1.xml" ContentType="{types}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="r1" Type="{office}/officeDocument" Target="xl/workbook.xml"/>'
        "</Relationships>",
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'
        '<sheet name="data" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="r1" Type="{office}/worksheet" Target="sheet1.xml"/></Relationships>',
        "xl/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{lines}</sheetData></worksheet>',
    }
    with zipfile.ZipFile(path, "w") as book:
        for name, content in parts.items():
            book.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{content}')


def test_a_workbook_gives_the_columns_of_the_same_csv_file() -> None:
    """Numbers, text, booleans and empty cells of the first sheet are read as they are."""
    rows = [
        [
            i / 4 if i % 7 else None,
            ["red", "blue, light"][i % 2],
            i % 3 == 0,
            i % 5 / 2,
            "ab"[i % 2],
        ]
        for i in range(90)
    ]
    header = ["n", "c", "b", None, "y"]
    write_workbook("t.xlsx", [header, *rows])
    names = ["n", "c", "b", "column_4", "y"]
    pl.DataFrame(rows, schema=names, orient="row").write_csv("t.csv")
    book, text = ready("t.xlsx"), ready()
    assert book.schema == text.schema
    for split in ("train", "val", "test"):
        for kind in ("numeric", "categorical"):
            x, expected = book.splits[split].x[kind], text.splits[split].x[kind]
            assert torch.equal(x.nan_to_num(-9), expected.nan_to_num(-9))
        assert torch.equal(book.splits[split].y, text.splits[split].y)
    assert finding_of(book, "no name").effect == "the name is column_4"
