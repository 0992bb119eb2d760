"""The runtime of bundles reads values as polars does in training: compared on generated columns."""

import json
import math
import warnings
from datetime import date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from proj.data.images import decode
from proj.data.tabular import Tabular
from proj.data.tabular.columns import encode_column
from proj.data.tabular.dates import _DAYS, _MONTHS, _OTHERS, _TIMES, EXCEL, UNITS
from proj.data.tabular.description import describe
from proj.data.tabular.files import by_name
from proj.data.tabular.numbers import DECIMAL_SIGNS
from proj.data.tabular.readings import ISO_FORMS, column_readings, read_column, to_polars_form
from proj.engine.deployment.runtime import InputError, UnreadableWarning, images
from proj.engine.deployment.runtime.dates import DAY, read_date
from proj.engine.deployment.runtime.numbers import SPACES, read_number
from proj.engine.deployment.runtime.table import Table, number_text
from proj.schema import Column, Schema

DATE_KINDS = ("days", "month", "weekday", "hour")


def column(type_: Any, kind: Any, form: str = "", **fields: Any) -> Column:
    edges, shares = ((0.0, 1.0), (0.0, 1.0)) if kind != "category" else ((), ())
    defaults: dict[str, Any] = {"missing": False, "categories": (), "format": form}
    return Column("c", type_, kind, edges=edges, shares=shares, **{**defaults, **fields})


def schema_of(*columns: Column) -> Schema:
    names = tuple(c.name for c in columns)
    return Schema(
        task="binary",
        input_shape=(len(columns),),
        input_type="table",
        input_names=names,
        input_mean=(),
        input_std=(),
        target_names=("y",),
        classes=("no", "yes"),
        class_counts=(1, 1),
        target_mean=(),
        target_std=(),
        rows=2,
        columns=columns,
    )


def by_runtime(values: list[Any], *columns: Column) -> np.ndarray[Any, Any]:
    """Encode values of the column ``c`` with the runtime: [rows, columns]."""
    table = Table(describe(schema_of(*columns)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableWarning)
        encoded = table.encode({"c": values}, strict=False)
    return np.concatenate(list(encoded.values()), axis=1)


def by_polars(values: list[Any], *columns: Column) -> np.ndarray[Any, Any]:
    """Encode texts of the column ``c`` as a prepared table is encoded."""
    reading = column_readings(columns)["c"]
    frame = pl.DataFrame({"c": values}, schema={"c": pl.String})
    typed = frame.select(read_column(by_name("c"), reading).alias("c"))
    encoded = [typed.select(encode_column(c)).to_series().to_numpy() for c in columns]
    return np.stack(encoded, axis=1)


def texts_like(*samples: str) -> st.SearchStrategy[str]:
    """Texts like the samples: with other digits, with parts left out or doubled, and spaces."""

    @st.composite
    def build(draw: st.DrawFn) -> str:
        characters = list(draw(st.sampled_from(samples)))
        for _ in range(draw(st.integers(0, 3))):
            place = draw(st.integers(0, max(0, len(characters) - 1)))
            change = draw(st.sampled_from(["digit", "drop", "double", "odd", "case"]))
            if not characters:
                break
            old = characters[place]
            if change == "digit" and old.isdigit():
                characters[place] = draw(st.sampled_from("0123456789"))
            elif change == "drop":
                del characters[place]
            elif change == "double":
                characters.insert(place, old)
            elif change == "case":
                characters[place] = old.swapcase()
            elif change == "odd":
                characters.insert(place, draw(st.sampled_from(" .,-+:/TZ\t\xa0\x1c٣_e%’('")))
        return "".join(characters)

    return build()


NUMBERS = (
    *(
        "36.5",
        "-1.5e3",
        "1,234.5",
        "1.234,5",
        "€ 7",
        "12 %",
        "(1,000)",
        "12,34,567",
        "1 234",
        "$-5",
    ),
    *(
        "−7",
        "kr. 5",
        "USD 12.50",
        "3.5 kg",
        ".5",
        "5.",
        "1'000.25",
        "inf",
        "nan",
        "NaN",
        "+4",
        "1e5",
    ),
    *("- 5", "−€3,000", "5 zł", "1,5", "0,5", "00501", "1e400", "Infinity", "abc", "", "n/a"),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(texts_like(*NUMBERS), min_size=1, max_size=20), st.sampled_from(list(DECIMAL_SIGNS))
)
@example(["1_000", " 5 ", "\x1c5", "٣", "1,234,567.5", "1.234.567,5"], "1,234.5")
def test_numbers_in_text_are_read_as_in_training(texts: list[str], style: str) -> None:
    """A style of numbers that the runtime reads otherwise gives other predictions."""
    form = "" if style == "1,234.5" else style
    number = column("number", "number", form)
    finite = [
        t for t in texts if abs(read_number(t, style)) < 1e38 or math.isnan(read_number(t, style))
    ]
    np.testing.assert_array_equal(by_runtime(finite, number), by_polars(finite, number))
    reading = column_readings([number])["c"]
    frame = pl.DataFrame({"c": texts}).select(read_column(by_name("c"), reading))
    expected = frame.to_series().fill_null(math.nan).to_list()
    np.testing.assert_array_equal([read_number(t, style) for t in texts], expected)


FORMS = (
    *(*_DAYS, *_MONTHS, *_OTHERS, *(f"%Y-%m-%d {time}" for time in _TIMES)),
    *(f"%d.%m.%Y {time}" for time in _TIMES),
    *("%d/%m/%Y|%d/%m/%Y %H:%M", ISO_FORMS, "%Y", "%j/%Y", "%F %T", "%d %b %Y"),
    *map(to_polars_form, ("%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S%z", "%a %d %b %y")),
)
MOMENTS = (
    datetime(2018, 1, 31, 10, 5, 59, 123456),
    datetime(1999, 12, 1, 0, 0),
    datetime(2024, 2, 29, 23, 59, 1),
    datetime(1970, 5, 4, 12, 30, 30, 500000),
)


def test_a_form_of_dates_that_stands_for_others() -> None:
    """``%D`` is month, day and two digits of the year."""
    assert read_date("01/31/70", "%D") == 30 * DAY
    assert read_date("01/31/1.", "%D") is None  # polars reads 2001


def written(form: str) -> list[str]:
    """Return moments as text of a form, by Python."""
    one = form.split("|")[0].replace("%.f", ".%f").replace("%#z", "+01:30")
    return [moment.strftime(one) for moment in MOMENTS]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_dates_in_text_are_read_as_in_training(data: st.DataObject) -> None:
    """A form of dates that the runtime reads otherwise gives other predictions."""
    form = data.draw(st.sampled_from(FORMS))
    texts = data.draw(st.lists(texts_like(*written(form)), min_size=1, max_size=10))
    columns = [column("date", kind, form) for kind in DATE_KINDS]
    np.testing.assert_array_equal(
        by_runtime(texts, *columns), by_polars(texts, *columns), str(texts)
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.integers(-(10**6), 10**18),
            st.floats(0, 1e11),
            st.sampled_from([20180131, 20181301, 201801, 2018, 43131.5, 20180131101500, 1.5e9]),
        ),
        min_size=1,
        max_size=10,
    ),
    st.sampled_from([*UNITS, EXCEL, "%Y%m%d", "%Y%m", "%Y", "%Y%m%d%H%M", "%Y%m%d%H%M%S"]),
)
def test_numbers_that_are_dates_are_read_as_in_training(numbers: list[float], form: str) -> None:
    """A unit or form of numbers that the runtime reads otherwise gives other predictions."""
    columns = [column("number", kind, form) for kind in DATE_KINDS]
    values = [float(number) for number in numbers]
    frame = pl.DataFrame({"c": values})
    expected = np.stack(
        [frame.select(encode_column(c)).to_series().to_numpy() for c in columns], axis=1
    )
    # polars has no months after the year 262,142.
    assume(not (np.abs(expected[:, 0]) > 9e7).any())
    np.testing.assert_array_equal(by_runtime(values, *columns), expected)


WORDS = ("basic", " plus", "plus", "pro ", "", "7", "7.5", "True", "ja")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.none(), texts_like(*WORDS)), min_size=1, max_size=10), st.booleans())
def test_categories_are_read_as_in_training(texts: list[str | None], spaces: bool) -> None:
    """Another code for a category, an unknown value or a missing value is another prediction."""
    known = ("7", "basic", "pro ") if spaces else ("7", "basic", "plus")
    category = column("text", "category", categories=known)
    frame = pl.DataFrame({"c": texts}, schema={"c": pl.String})
    expected = Tabular.encode(frame, schema_of(category))["categorical"].numpy()
    np.testing.assert_array_equal(by_runtime(texts, category), expected)


@settings(max_examples=60, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_numbers_are_written_as_categories_as_polars_writes_them(
    number: float, single: bool
) -> None:
    """A category of a number that is written otherwise is an unknown category."""
    with np.errstate(over="ignore"):
        value: Any = np.float32(number) if single else number
    if math.isinf(value):
        return
    category = column("number", "category", categories=("0.5", "7"))
    series = pl.Series("c", [value], dtype=pl.Float32 if single else pl.Float64)
    text = series.to_frame().select(_category_text(category)).item()
    assert number_text(value) == (text or "")


def _category_text(category: Column) -> pl.Expr:
    from proj.data.tabular import columns

    return columns._category_text(category)


TEXTS = (
    "It is not good.",
    "Don’t! ÉTÉ don't",
    "很好 吃",
    "ΟΔΟΣ Straße İx",
    "",
    " ",
    "a 🙂good good",
)
TERMS = ("good", "not good", "don't", "été don't", "很 好", "straße", "🙂 good", "x", "7", "e")


def score_column() -> Column:
    """Return a score whose terms have different numbers."""
    parts = {part: 1 / n for n, part in enumerate(["go", " g", "!", "ß", "🙂 ", "d"], 2)}
    terms = {"words": {term: 1 + n / 7 for n, term in enumerate(TERMS)}, "parts": parts}
    weights = [(-1) ** n / (n + 3) for n in range(len(TERMS) + len(parts) + 1)]
    return column("text", "score", categories=("yes", json.dumps(terms), json.dumps(weights)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.none(), texts_like(*TEXTS), st.text()), min_size=1, max_size=10),
)
@example(["\u1680a\x1cb\u3000c", "e\u0301 e", "7_7", "''good''", "ⅷ ² º", None, "!?"])
def test_words_of_texts_are_found_as_in_training(texts: list[str | None]) -> None:
    """A word that the runtime finds elsewhere, or does not find, gives another prediction."""
    words = [column("text", "word", categories=(term,)) for term in TERMS]
    inputs = [score_column(), *words, column("text", "length")]
    frame = pl.DataFrame({"c": texts}, schema={"c": pl.String})
    expected = Tabular.encode(frame, schema_of(*inputs))["numeric"].numpy()
    np.testing.assert_array_equal(by_runtime(texts, *inputs), expected)


TYPED: list[tuple[Column, list[Any]]] = [
    (column("number", "number"), [1, 2.5, None, math.nan, np.float32(0.1), np.int64(7)]),
    (column("number", "number", center=1.7e9), [1_700_000_001, 1.7e9, None]),
    (column("number", "category", categories=("0.1", "7")), [7, 7.0, 0.1, None, 8]),
    (column("boolean", "category", categories=("false", "true")), [True, False, None]),
    (column("boolean", "number"), [True, False, None]),
    (column("date", "days"), [date(2018, 1, 31), None]),
    (column("date", "hour"), [datetime(2018, 1, 31, 10, 15, 30), None]),
    (
        column("date", "hour"),
        [datetime(2018, 1, 31, 23, 15, tzinfo=timezone(timedelta(hours=-3))), None],
    ),
    (column("date", "category", categories=("2018-01-31",)), [date(2018, 1, 31), None]),
    (column("text", "category", categories=("7", "8.5")), [7, 8.5, None]),
    (column("number", "number"), [timedelta(seconds=3), None]),
]


@pytest.mark.parametrize(("typed", "values"), TYPED, ids=lambda case: str(case)[:60])
def test_typed_values_are_read_as_by_the_loaded_model(typed: Column, values: list[Any]) -> None:
    """A value of Python or NumPy that is encoded otherwise than by ``proj.load`` fails here."""
    x = Tabular.encode({"c": values}, schema_of(typed))
    expected = np.concatenate([x["numeric"].numpy(), x["categorical"].numpy()], axis=1)
    np.testing.assert_array_equal(by_runtime(values, typed), expected)


WRONG: list[tuple[Column, Any, str]] = [
    (column("number", "number"), "oops", "row 0: column c: expected a number, got 'oops'"),
    (column("number", "number"), True, "row 0: column c: expected a value of type number"),
    (
        column("text", "category", categories=("a",)),
        7,
        "row 0: column c: expected a value of type t",
    ),
    (column("date", "days"), 7, "row 0: column c: expected a value of type date"),
    (column("date", "days"), "31st", "row 0: column c: expected a date, got '31st'"),
    (column("boolean", "number"), 1, "row 0: column c: expected a value of type boolean"),
    (column("number", "number"), math.inf, "row 0: column c: expected a finite number, got inf"),
    (column("number", "number"), "1e39", "row 0: column c: expected a finite number"),
]


@pytest.mark.parametrize(("typed", "value", "message"), WRONG, ids=lambda case: str(case)[:40])
def test_a_value_that_cannot_be_read_is_an_error_with_its_place(
    typed: Column, value: Any, message: str
) -> None:
    """An input that is misread silently gives a wrong prediction."""
    with pytest.raises(InputError) as caught:
        Table(describe(schema_of(typed))).encode({"c": [value]}, strict=True)
    assert str(caught.value).startswith(message)
    assert (caught.value.column, caught.value.row) == ("c", 0)


def test_what_is_written_twice_is_equal() -> None:
    """The runtime repeats some constants, because it stands alone."""
    assert images.FORMATS == decode.FORMATS
    every = pl.Series([chr(i) for i in range(0x11000) if not 0xD800 <= i < 0xE000])
    assert set(every.filter(every.str.strip_chars() == "")) == set(SPACES)


def test_blank_texts_are_missing_in_bundles_too() -> None:
    """A field of spaces would be an unknown category in a bundle and missing in training."""
    words = column("text", "category", categories=("a", "b"))
    values = ["a", " b ", "", "  ", "c"]
    assert by_runtime(values, words).tolist() == by_polars(values, words).tolist()
    assert by_runtime(values, words)[:, 0].tolist() == [2, 3, 0, 0, 1]


@pytest.mark.parametrize("categories", [("None", "red"), ("", "NA", "red"), ("red",)])
def test_words_and_blanks_are_missing_as_for_rows_from_python(categories: tuple[str, ...]) -> None:
    """NA is missing in a text file, and a category where the training data have it."""
    values = ["red", " red ", "NA", " NA", "None", "", "  ", "?", "blue", None]
    schema = schema_of(column("text", "category", categories=categories))
    encoded = Tabular.encode({"c": values}, schema)["categorical"]
    assert by_runtime(values, *schema.columns).tolist() == encoded.tolist()
    assert encoded[2] == (0 if "NA" not in categories else 3)
