"""Text of a table: numbers, dates and placeholders are read as a person reads them."""

import csv
import datetime as dt
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proj.data.tabular.datamodule import Tabular
from proj.data.tabular.dates import (
    find_date_form,
    find_number_form,
    read_dates,
    read_number_dates,
)
from proj.data.tabular.dialect import plain_copy
from proj.data.tabular.files import open_table
from proj.data.tabular.numbers import parse_numbers
from proj.data.tabular.readings import days_in_numbers
from proj.engine.training.data_checks import check_data
from proj.errors import UserError
from proj.schema import Column, Schema


def ready(path: str, target: Any = "y", **options: Any) -> Tabular:
    data = Tabular(path, target, **{"batch_size": 8, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def columns(data: Tabular) -> dict[str, Column]:
    assert data.schema is not None
    return {column.name: column for column in data.schema.columns}


def write(path: str, **values: list[Any]) -> None:
    """Write a table with a target ``y`` of two classes."""
    rows = len(next(iter(values.values())))
    frame = pl.DataFrame({name: [str(v) for v in column] for name, column in values.items()})
    frame.with_columns(y=pl.Series(["a", "b"] * rows)[:rows]).write_csv(path)


def texts(path: str) -> pl.DataFrame:
    """Return the fields of a text file."""
    with open_table([Path(path)]) as source:
        return source.table.collect()


def ready_rows(text: str) -> pl.DataFrame:
    """Return the fields of a text, without spaces around them."""
    Path("t.csv").write_text(text)
    return texts("t.csv").select(pl.all().str.strip_chars())


def all_values(data: Tabular, name: str) -> list[float]:
    """Return the values of a numeric column in the order of the file."""
    assert data.schema is not None
    i = [column.name for column in data.schema.numeric].index(name)
    center = data.schema.numeric[i].center
    found = {}
    for split in data.splits.values():
        numbers = split.x["numeric"][:, i].double() + center
        found |= dict(zip(split.row.tolist(), numbers.tolist(), strict=True))
    return [found[row] for row in sorted(found)]


@pytest.mark.parametrize(
    ("text", "style", "number"),
    [
        ("1,234.5", "1,234.5", 1234.5),
        ("1.234,5", "1.234,5", 1234.5),
        ("36,5", "1.234,5", 36.5),
        ("36,5", "1,234.5", None),
        ("12,34,567", "1,234.5", 1234567),
        ("1 234 567,8", "1.234,5", 1234567.8),
        ("1\u00a0234,5", "1.234,5", 1234.5),
        ("1\u202f234", "1,234.5", 1234),
        ("1\u00a023", "1,234.5", None),
        ("1'234.5", "1,234.5", 1234.5),
        ("$1,234.50", "1,234.5", 1234.5),
        ("-$5", "1,234.5", -5),
        ("($5)", "1,234.5", -5),
        ("7 €", "1.234,5", 7),
        ("12 %", "1,234.5", 12),
        ("−5", "1,234.5", -5),
        (" 5 ", "1,234.5", 5),
        ("1e5", "1,234.5", 1e5),
        ("1,23,4", "1,234.5", None),
        ("0,123", "1,234.5", None),
        ("5 kg", "1,234.5", None),
        ("5)", "1,234.5", None),
        ("1-2", "1,234.5", None),
        ("nil", "1,234.5", None),
    ],
)
def test_a_number_is_read_in_its_style(text: str, style: str, number: float | None) -> None:
    """A misplaced separator must not give another number."""
    assert parse_numbers(pl.Series([text]), style).to_list() == [number]


DAYS = [dt.datetime(2018, 1, 1, 5, 30, 7) + dt.timedelta(3 * i, 997 * i) for i in range(200)]
FORMS = [
    *("%Y-%m-%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%d-%b-%Y", "%b %d %Y", "%B %d, %Y"),
    *("%d.%m.%y", "%Y%m%d", "%d %B %Y", "%A, %d %B %Y", "%d%b%Y", "%Y/%m/%d", "%m-%d-%Y"),
    *("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%f", "%m/%d/%Y %H:%M:%S"),
    *("%Y-%m-%d %H:%M:%S+00:00", "%d/%m/%Y %I:%M:%S %p", "%a %b %d %H:%M:%S %Y"),
]


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_dates_is_found(form: str) -> None:
    """Python's strftime writes the dates, and the columns has them back."""
    texts = pl.Series([day.strftime(form) for day in DAYS])
    found = find_date_form(texts, pl.Series([1] * len(texts)))
    assert found is not None
    (date_form, rows) = found
    assert (rows, date_form.other) == (200, "")
    read = texts.to_frame("v").select(read_dates(pl.col("v"), date_form.form).cast(pl.Datetime))
    expected = [day if "S" in form else day.replace(hour=0, minute=0, second=0) for day in DAYS]
    assert read.to_series().to_list() == expected


@pytest.mark.parametrize(
    "values", [["10:30", "11:45"], ["12-15", "30-45"], ["10.0.0.1", "10.0.0.2"], ["item 2018"]]
)
def test_other_text_with_digits_is_no_date(values: list[str]) -> None:
    """Times, ranges and addresses have no day."""
    assert find_date_form(pl.Series(values), pl.Series([1] * len(values))) is None


@pytest.mark.parametrize(
    ("number", "form"),
    [
        (20180131, "%Y%m%d"),
        (201801, "%Y%m"),
        (2018, "%Y"),
        (1517356800, "seconds"),
        (1517356800000, "milliseconds"),
        (1517356800000000, "microseconds"),
        (1517356800000000000, "nanoseconds"),
        (43131, "excel"),
        (1517356800.5, "seconds"),
        (20181332, None),
        (7, None),
    ],
)
def test_the_form_of_numbers_that_are_dates_is_found(number: float, form: str | None) -> None:
    """No number must land in 1970."""
    assert find_number_form(pl.Series([number])) == form
    if form:
        read = pl.select(read_number_dates(pl.lit(number), form).dt.year()).item()
        assert read == 2018


def test_placeholders_among_numbers_are_missing_and_counted() -> None:
    """One word must not turn a column of numbers into a category."""
    values = [*range(90), "nil", "nil", "-", *range(7)]
    write("t.csv", n=values)
    data = ready("t.csv")
    assert columns(data)["n"].kind == "number"
    assert columns(data)["n"].placeholders == ("-", "nil")
    (finding,) = data.findings
    assert finding.what == "3 of 100 values of column n cannot be read as numbers, such as 'nil'"
    assert finding.effect == "they count as missing: 'nil' (2), '-' (1)"
    read = all_values(data, "n")
    assert [value for value in read if value == value] == [
        v for v in values if v not in ("nil", "-")
    ]


def test_many_words_among_numbers_stay_text() -> None:
    """Below 95 % of readable values, words have a meaning."""
    write("t.csv", n=[*range(90), *["low"] * 10], x=range(100))
    data = ready("t.csv", columns={"n": "category", "x": "number"})
    assert columns(data)["n"].type == "text"


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (["36,5", "40,25"], [36.5, 40.25]),
        (["1.234,5", "7"], [1234.5, 7.0]),
        (["$1,234", "$7.5"], [1234.0, 7.5]),
        (["12%", "7.5 %"], [12.0, 7.5]),
        (["1 234", "5"], [1234.0, 5.0]),
    ],
)
def test_numbers_in_other_forms_are_read_with_a_finding(
    values: list[str], numbers: list[float]
) -> None:
    """A reader must be able to see what was read as what."""
    write("t.csv", n=values * 50)
    data = ready("t.csv")
    assert all_values(data, "n") == numbers * 50
    (finding,) = data.findings
    assert "values of column n are written like " in finding.what
    assert finding.column == "n"


def test_an_ambiguous_comma_follows_the_rest_of_the_file() -> None:
    """1,234 is 1234 beside 1,234.5, and 1.234 beside 36,5."""
    for other, number in (("36,5", 1.234), ("1,000.5", 1234.0)):
        write("t.csv", n=["1,234", "2,345"] * 50, other=[other, "7"] * 50)
        assert all_values(ready("t.csv"), "n")[0] == pytest.approx(number)


def test_a_stated_number_format_is_followed_silently() -> None:
    """The user's word ends the doubt."""
    write("t.csv", n=["1,234", "2,345"] * 50)
    data = ready("t.csv", columns={"n": {"kind": "number", "format": "1.234,5"}})
    assert all_values(data, "n")[:2] == pytest.approx([1.234, 2.345])
    assert data.findings == []


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("number", "data.columns: w: expected numbers, got 'x'"),
        ("date", "data.columns: w: expected dates, got 'x'"),
        ({"kind": "date", "format": "%d/%m/%Y"}, "expected dates in the format %d/%m/%Y, got 'x'"),
        ({"kind": "number", "format": "1-2"}, "expected the format of numbers, 1,234.5 or 1.234,5"),
        ({"kind": "amount"}, "w: expected number, category, date, text, drop, or one of them"),
    ],
)
def test_a_kind_that_cannot_be_followed_is_an_error(stated: Any, message: str) -> None:
    """The column must not silently get another kind."""
    write("t.csv", w=["x", "y"] * 50, n=range(100))
    with pytest.raises(UserError) as error:
        ready("t.csv", columns={"w": stated})
    assert message in str(error.value)


def test_dates_of_two_forms_have_a_finding() -> None:
    """01/02/2018 is a day in January or in February."""
    write("t.csv", d=[f"{m:02}/{d:02}/2018" for m in range(1, 11) for d in range(1, 11)])
    data = ready("t.csv")
    (finding,) = [f for f in data.findings if "fit" in f.what]
    assert finding.what == "the dates of column d fit %m/%d/%Y and %d/%m/%Y"
    assert "{d: {kind: date, format: '%d/%m/%Y'}}" in finding.remedy
    write("months.csv", d=[f"{m:02}/01/{2010 + i}" for m in range(1, 13) for i in range(9)])
    assert "d.month" in columns(ready("months.csv"))


def test_a_date_in_another_form_is_missing_and_counted() -> None:
    """One value must not stop the file."""
    days = [str(dt.date(2018, 1, 1) + dt.timedelta(i)) for i in range(99)]
    write("t.csv", d=[*days, "20/07/2018"])
    data = ready("t.csv")
    (finding,) = [f for f in data.findings if f.column == "d"]
    assert (
        finding.what == "1 of 100 values of column d cannot be read as dates, such as '20/07/2018'"
    )
    assert sum(v != v for v in all_values(data, "d")) == 1


@pytest.mark.parametrize("odd", [20181331, 99999999, 0])
def test_a_few_numbers_that_are_no_dates_do_not_hide_the_others(odd: int) -> None:
    """As in text, 95 % are enough, and the others are missing and counted."""
    days = [dt.date(2018, 1, 1) + dt.timedelta(5 * i) for i in range(97)]
    write("t.csv", when=[*(f"{day:%Y%m%d}" for day in days), *[odd] * 3])
    data = ready("t.csv", val_fraction=0.0, test_fraction=0.0)
    assert columns(data)["when"].kind == "days"
    read = all_values(data, "when")
    assert read[:97] == [(day - dt.date(1970, 1, 1)).days for day in days]
    assert all(value != value for value in read[97:])
    what = [finding.what for finding in data.findings]
    share = "3 of 100 numbers of column when in training rows"
    assert f"{share} cannot be read as dates, such as {odd}" in what


def test_an_order_in_time_needs_times() -> None:
    """The alphabet puts Apr before Jan."""
    days = [dt.date(2010 + i // 12, i % 12 + 1, 1) for i in range(100)]
    write("t.csv", when=[f"{day:%b} {day.day} {day.year}" for day in days], x=range(0, 500, 5))
    test = ready("t.csv", time="when").splits["test"].row.tolist()
    assert test == list(range(85, 100))
    write("t.csv", when=[f"week {i}" for i in range(100)], x=range(0, 500, 5))
    with pytest.raises(UserError, match=r"data\.time: expected dates or numbers in column when"):
        ready("t.csv", time="when")


def test_large_numbers_keep_their_differences() -> None:
    """float32 rounds seconds since 1970 to multiples of 128."""
    values = [1.7e9 + i / 4 for i in range(100)]
    write("t.csv", n=values)
    data = ready("t.csv")
    assert all_values(data, "n") == values
    assert data.findings == []
    rows = {"n": [1.7e9 + 7.25]}
    assert data.schema is not None
    encoded = Tabular.encode(rows, data.schema)["numeric"].item()
    assert encoded + columns(data)["n"].center == 1.7e9 + 7.25


def test_whole_numbers_above_2_53_have_a_finding() -> None:
    """They are rounded, and may be identifiers."""
    write("t.csv", n=[2**53 + i**2 * 2**40 for i in range(100)])
    assert any("are above 2^53, such as" in f.what for f in ready("t.csv").findings)


def test_merged_categories_have_a_finding() -> None:
    """Nobody should search for a category that the model never sees."""
    write("t.csv", c=["a", "b"] * 48 + ["w", "x", "y", "z"])
    data = ready("t.csv", val_fraction=0.0, test_fraction=0.0)
    assert data.findings[0].what == (
        "4 of 6 values of column c, in 4 of 100 training rows, count as one, such as 'w'"
    )


def test_a_single_rare_category_is_merged_with_nothing() -> None:
    """It is still distinct from the others, so no finding may say that values count as one."""
    write("t.csv", c=["a", "b"] * 49 + ["w", "w"])
    assert ready("t.csv", val_fraction=0.0, test_fraction=0.0).findings == []


def test_fields_of_spaces_are_missing() -> None:
    """Nobody can see the difference from an empty field. They are no odd numbers or dates."""
    days = [str(dt.date(2018, 1, 1) + dt.timedelta(i)) for i in range(98)]
    blank = [" ", "  "]
    write("t.csv", c=["a", "b"] * 49 + blank, n=[*range(98), *blank], d=[*days, *blank])
    data = ready("t.csv", val_fraction=0.0, test_fraction=0.0)
    assert not any("cannot be read" in finding.what for finding in data.findings)
    assert data.schema is not None
    fitted = columns(data)
    assert (fitted["c"].categories, fitted["c"].missing) == (("a", "b"), True)
    assert (fitted["n"].kind, fitted["n"].missing) == ("number", True)
    assert (fitted["d"].kind, fitted["d"].missing) == ("days", True)
    new = Tabular.encode({"c": ["", " "], "n": [" ", "1"], "d": ["", days[0]]}, data.schema)
    assert new["categorical"][:, 0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("offset", "hours"), [("+00:00", 0), ("+0000", 0), ("Z", 0), ("+01:00", 1), ("-0330", -3.5)]
)
def test_only_times_with_an_offset_are_called_converted(offset: str, hours: float) -> None:
    """A day such as -06 is no offset, and +00:00 changes nothing."""
    times = [dt.datetime(2019, 6, 13) + dt.timedelta(hours=7 * i) for i in range(100)]
    write("t.csv", when=[f"{time:%Y-%m-%dT%H:%M:%S.%f}{offset}" for time in times])
    data = ready("t.csv", val_fraction=0.0, test_fraction=0.0)
    found = [f.what for f in data.findings if "not in UTC" in f.what]
    expected = [
        f"100 times of column when are not in UTC, such as '2019-06-13T00:00:00.000000{offset}'"
    ]
    assert found == (expected if hours else [])
    utc = [(t - dt.datetime(1970, 1, 1)) / dt.timedelta(days=1) - hours / 24 for t in times]
    assert all_values(data, "when") == pytest.approx(utc)


def test_text_that_is_mostly_numbers_has_a_finding() -> None:
    """A word for every tenth year hides the numbers of the others."""
    write("t.csv", year=[*range(1700, 1790), *["Ancient"] * 10], x=[*range(50)] * 2)
    (mixed,) = [f for f in ready("t.csv").findings if "are numbers" in f.what]
    assert mixed.what == (
        "90 of 100 values of column year are numbers, the others are not, such as 'Ancient'"
    )
    assert mixed.remedy.endswith("set data.columns: {year: number}")
    data = ready("t.csv", columns={"year": "number"})
    assert columns(data)["year"].kind == "number"
    write("few.csv", drive=["4", "4", "r"] * 33 + ["f"], x=[*range(50)] * 2)
    assert ready("few.csv").findings == []


def test_labels_that_look_alike_have_a_finding(work: Path) -> None:
    """Yes and yes are two classes, which nobody wants."""
    pl.DataFrame({"x": range(0, 500, 5), "y": ["no", "yes", "Yes", "no"] * 25}).write_csv("t.csv")
    finding = next(f for f in ready("t.csv").findings if "differ only" in f.what)
    assert finding.what == (
        "2 values of the target y differ only in capitals or spaces, in 50 rows, such as 'Yes' "
        "and 'yes'"
    )


def test_split_columns_in_any_case_and_without_validation_rows() -> None:
    """Publishers write Train and Test."""
    names = ["Train"] * 60 + ["TEST"] * 40
    write("t.csv", part=names, x=[i % 7 for i in range(100)])
    data = ready("t.csv", split="part", val_fraction=0.1)
    assert [len(split.row) for split in data.splits.values()] == [54, 6, 40]
    assert min(data.splits["test"].row) == 60
    noticed = ready("t.csv")
    (finding,) = [f for f in noticed.findings if f.column == "part"]
    assert "set data.split: part" in finding.effect
    assert "part" not in columns(noticed)


def test_copies_are_rows_that_are_equal_in_the_file() -> None:
    """People of one class and age are not copies of each other; a second record of one is."""
    names = [f"person {i}" for i in range(100)]
    write("t.csv", name=names, age=[30, 40, 50, 60] * 25, index=range(100))
    texts_of = [str(finding) for finding in check_data(ready("t.csv"))]
    assert not any("exact copies" in text or "different label" in text for text in texts_of)
    write("t.csv", name=["a", "b"] * 50, age=[30, 40, 50, 60] * 25, index=range(100))
    data = ready("t.csv", columns={"name": "category", "age": "number"})
    assert any("test rows are exact copies of train rows" in str(f) for f in check_data(data))


def test_new_rows_are_read_as_in_training() -> None:
    """The same words are missing, the same commas are decimal, in any container of rows."""
    days = [str(dt.date(2018, 1, 1) + dt.timedelta(i)) for i in range(100)]
    write("t.csv", n=["36,5", "40,25"] * 49 + ["odd", "12,5"], d=days, c=["7", "x"] * 50)
    schema = ready("t.csv").schema
    assert schema is not None
    frame = pl.DataFrame({"n": ["1.234,5", "odd", "7"], "d": days[:3], "c": ["7", "x", "x"]})
    expected = Tabular.encode(frame, schema)
    assert expected["numeric"][:, 0].nan_to_num(-1).tolist() == [1234.5, -1, 7]
    rows = frame.rows(named=True)
    assert Tabular.encode(rows, schema)["categorical"].equal(expected["categorical"])
    one = Tabular.encode(rows[0], schema)
    assert one["numeric"].equal(expected["numeric"][:1])
    assert len(Tabular.encode(frame[:0], schema)["numeric"]) == 0
    with pytest.raises(UserError, match=r"column n: expected .* type number.*got text, 'bad'"):
        Tabular.encode({"n": "bad", "d": days[0], "c": "x"}, schema)
    with pytest.raises(UserError, match="expected columns of equal length, got n 2, d 1"):
        Tabular.encode({"n": ["1", "2"], "d": days[:1]}, schema)


def test_a_schema_of_an_older_version_is_read() -> None:
    """Its columns have no format, no placeholders and no center."""
    write("t.csv", n=range(0, 500, 5), d=["2018-01-01", "2019-05-06"] * 50)
    schema = ready("t.csv").schema
    assert schema is not None
    values = schema.to_dict()
    del values["target_columns"]
    for column in values["columns"]:
        for name in ("format", "placeholders", "center"):
            del column[name]
    assert Schema.from_dict(values) == schema


# Dialects

Change = Callable[[str], bytes]
CHANGES: dict[str, Change] = {
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16 without a mark": lambda text: text.encode("utf-16-le"),
    "utf-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "carriage returns": lambda text: text.replace("\n", "\r").encode(),
    "windows": lambda text: text.replace("\n", "\r\n").encode(),
    "sep=": lambda text: b"sep=,\n" + text.encode(),
    "comments": lambda text: b"# made by X\n#\n" + text.encode() + b"# end\n",
    "blank lines": lambda text: b"\n" + text.replace("\n", "\n\n").encode(),
    "hash before the names": lambda text: b"#" + text.encode(),
    "spaces": lambda text: text.replace(",", ", ").encode(),
    "whitespace": lambda text: text.replace(",", "   ").encode(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_of_another_program_gives_the_same_table(change: str, work: Path) -> None:
    """Encodings, line ends and extra lines must not change a value."""
    text = "a,b\n" + "".join(f"{i},w{i}\n" for i in range(20))
    Path("t.csv").write_bytes(CHANGES[change](text))
    Path("copies").mkdir()
    _, dialect = plain_copy(Path("t.csv"), Path("copies"), tab_separated=False)
    assert dialect.names == ("a", "b")
    rows = texts("t.csv")
    assert [value.strip() for value in rows["b"]] == [f"w{i}" for i in range(20)]


@pytest.mark.parametrize(
    ("text", "names", "separator"),
    [
        ('"age, in years, rounded";"size, cm";y\n1;2;a\n', ("age, in years, rounded",), ";"),
        ("x;y\n1,5;2,5\n2,5;3,5\n", ("x",), ";"),
        ("a|b,c\n1|2\n", ("a",), "|"),
        (",x\n1,2\n", ("column_1",), ","),
        ("x, y, z\n1, 2, 3\n", ("x", "y", "z"), ","),
    ],
)
def test_the_separator_gives_equal_field_counts(
    text: str, names: tuple[str, ...], separator: str, work: Path
) -> None:
    """The commonest sign of a header may be in its names."""
    Path("t.csv").write_text(text)
    Path("copies").mkdir()
    _, dialect = plain_copy(Path("t.csv"), Path("copies"), tab_separated=False)
    assert dialect.names[: len(names)] == names
    assert dialect.separator == separator


@pytest.mark.parametrize(
    ("header", "is_row"),
    [
        ("14.23,1.71,2.43,x", True),
        ("5,3,3.5,x", True),
        ("1990,1991,1992,x", False),
        ("0.5,1,4.25,x", False),
        ("a,b,2,1", False),
    ],
)
def test_a_first_line_of_numbers_has_a_finding(header: str, is_row: bool, work: Path) -> None:
    """Without a header the first row gives the names. The years of a wide table are names."""
    Path("t.csv").write_text(f"{header}\n1,2,3,a\n4,5,6,b\n")
    with open_table([Path("t.csv")]) as source:
        found = [f.what for f in source.findings]
    first = ", ".join(header.split(",")[:3])
    assert found == ([f"the first line of t.csv may be a row: it begins with {first}"] * is_row)


@pytest.mark.parametrize("header", ["n,word,", ",word,n", " n, word, x"])
def test_a_header_among_the_rows_is_left_out(header: str, work: Path) -> None:
    """Files that were put together have it. A row with the name of one column is a row."""
    rows = "".join(f"{i},w{i % 3},{i / 4}\n" for i in range(30))
    plain = ready_rows(f"{header}\n{rows}x,word,n\n")
    repeated = ready_rows(f"{header}\n{rows}{header}\nx,word,n\n{header}\n")
    assert repeated.rows() == plain.rows()
    assert plain.rows()[-1] == ("x", "word", "n")
    with open_table([Path("t.csv")]) as source:
        assert source.findings[0].what == "2 rows repeat the header of t.csv"


@pytest.mark.parametrize("separator", [" ", ",", "\t", ";"])
def test_row_names_of_r_are_a_column(separator: str, work: Path) -> None:
    """R writes no name above them, so that each value would be in the column before its own."""
    lines = [["x", "y"], ["New York", "1", "a"], ["Rome", "2", "NA"], ["Bern", "3", "c"]]
    quoted = [separator.join(f'"{w}"' if not w.isdigit() else w for w in line) for line in lines]
    Path("t.csv").write_text("\n".join(quoted) + "\n")
    assert texts("t.csv").rows() == [
        ("New York", "1", "a"),
        ("Rome", "2", None),
        ("Bern", "3", "c"),
    ]
    with open_table([Path("t.csv")]) as source:
        assert source.table.collect_schema().names() == ["column_1", "x", "y"]
        (finding,) = source.findings
    assert "the header of t.csv has one field less" in finding.what


@pytest.mark.parametrize("text", ["x,y\n1,2,\n3,4,\n", "x,y\na,2,3\na,4,5\n"])
def test_other_lines_with_one_field_more_are_refused(text: str, work: Path) -> None:
    """A separator at the end of the lines, or names that repeat, are no row names."""
    Path("t.csv").write_text(text)
    with pytest.raises(UserError, match="expected 2 fields per line, as in the header, got 3"):
        texts("t.csv")


@pytest.mark.parametrize("field", ['5" pipe', 'say "hi" there', '"a"b', 'x"y"z"'])
def test_stray_quotes_are_read_as_python_reads_them(field: str, work: Path) -> None:
    """polars merges lines at such a quote, or refuses the file."""
    text = "a,kind\n" + "".join(f"{i},{field}\n" for i in range(8))
    Path("t.csv").write_text(text)
    rows = texts("t.csv")
    assert rows["kind"].to_list() == [row[1] for row in csv.reader(io.StringIO(text))][1:]


def test_excel_json_and_compressed_files_give_the_same_columns(work: Path) -> None:
    """A table is its values, not its file."""
    import gzip

    frame = pl.DataFrame({"n": [i / 4 for i in range(50)], "c": ["a", "b"] * 25, "y": [0, 1] * 25})
    frame.write_csv("T.CSV")
    Path("t.csv.gz").write_bytes(gzip.compress(Path("T.CSV").read_bytes()))
    frame.write_ndjson("t.json")
    frame.write_json("list.json")
    Path("data [v2]").mkdir()
    frame.write_csv("data [v2]/t (copy) [1].csv")
    expected = ready("T.CSV").schema
    for path in ("t.csv.gz", "t.json", "list.json", "data [v2]/t (copy) [1].csv"):
        assert ready(path).schema == expected, path


def test_columns_that_yaml_reads_as_values_are_named_in_quotes() -> None:
    """On is true to YAML, and 2019 a number."""
    write("t.csv", **{"2019": range(0, 500, 5), "on": range(0, 500, 5)})
    names = columns(ready("t.csv", columns={2019: "drop"}))
    assert set(names) == {"on"}
    with pytest.raises(UserError, match="put the name in quotes"):
        ready("t.csv", columns={True: "drop"})


numbers = st.lists(st.integers(-9999, 9999), min_size=30, max_size=30, unique=True)
dates = st.lists(st.dates(dt.date(1990, 1, 1), dt.date(2060, 1, 1)), min_size=30, max_size=30)


@pytest.mark.long
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    whole=numbers,
    days=dates,
    separator=st.sampled_from(",;\t|"),
    signs=st.sampled_from([",.", ".,", " .", " ,", "'.", "\u202f,", "\u00a0,"]),
    form=st.sampled_from(
        [
            *("%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d-%b-%Y", "%Y%m%d", "%Y/%m/%d", "%d %B %Y"),
            *("%b %d, %Y", "%Y-%m-%d %H:%M:%S", "%d/%m/%Y %H:%M"),
        ]
    ),
    affix=st.sampled_from(["{}", "{} %", "${}", " {} ", "{} €", "EUR {}"]),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "utf-16-le"]),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    placeholder=st.sampled_from(["", "-", "NA", "nil", "#N/A", " ", "<NA>", "missing"]),
)
def test_a_table_in_any_dialect_is_read_back(
    whole: list[int],
    days: list[dt.date],
    separator: str,
    signs: str,
    form: str,
    affix: str,
    encoding: str,
    newline: str,
    quoting: Any,
    placeholder: str,
    tmp_path_factory: Any,
) -> None:
    """Numbers, dates, booleans and categories have their kinds and values in each dialect."""
    folder = tmp_path_factory.mktemp("dialect")
    amounts = [number + 0.25 for number in whole]
    written = [affix.format(f"{a:,.2f}".translate(str.maketrans(",.", signs))) for a in amounts]
    # Days 13 to 31 show which number is the day.
    days = [days[0].replace(day=28), days[1].replace(day=1), *days[2:]]
    words = ["red", "blue, light", 'dark "blue"']
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, lineterminator=newline, quoting=quoting)
    writer.writerow(["amount", "day", "word", "flag", "y"])
    for i in range(30):
        flag = ["TRUE", "False"][i % 2]
        writer.writerow([written[i], days[i].strftime(form), words[i % 3], flag, i % 2])
    writer.writerow([placeholder, placeholder, "red", "True", 0])
    path = folder / "t.csv"
    path.write_bytes(out.getvalue().encode(encoding))
    options = {"val_fraction": 0.0, "test_fraction": 0.0, "cache_dir": str(folder / "cache")}
    data = ready(str(path), columns={"word": "category"}, **options)
    kinds = {name: (column.type, column.kind) for name, column in columns(data).items()}
    assert kinds["amount"] == ("number", "number")
    assert kinds["day"][1] == "days"
    assert kinds["word"] == ("text", "category")
    assert kinds["flag"] == ("boolean", "category")
    assert set(columns(data)["word"].categories) == set(words)
    for name, expected in (
        ("amount", amounts),
        ("day", [(day - dt.date(1970, 1, 1)).days for day in days]),
    ):
        read = all_values(data, name)
        assert read[:30] == pytest.approx(expected)
        assert read[30] != read[30]


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt8, pl.Int16, pl.Int64, pl.UInt64, pl.Float32])
def test_small_integers_are_not_compared_as_days(dtype: type[pl.DataType]) -> None:
    """A Parquet column of Int8 ended with a traceback: it cannot hold the limits of days."""
    assert not days_in_numbers(pl.Series([1, 2, 100], dtype=dtype))
    assert days_in_numbers(pl.Series([20180131, 20190228], dtype=pl.Int32))
