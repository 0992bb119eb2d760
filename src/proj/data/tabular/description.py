"""How the columns of a table are read and encoded, as plain values for an exported bundle."""

from datetime import datetime, timedelta
from typing import Any

import polars as pl

from proj.data.tabular.dates import EXCEL, UNITS
from proj.data.tabular.files import MISSING
from proj.data.tabular.numbers import DEFAULT_FORMAT, PLACEHOLDERS, plain_numbers
from proj.data.tabular.readings import ISO_FORMS, column_readings
from proj.data.tabular.text_encoder import is_encoded
from proj.data.tabular.typed import has_outer_spaces, missing_words
from proj.errors import UserError
from proj.schema import Column, Schema

# Characters of a date without a time.
DAY_LENGTH = 10
EPOCH = datetime(1970, 1, 1)


def describe(schema: Schema) -> dict[str, Any]:
    """Return how raw rows become inputs: ``inputs`` of ``bundle.json``.

    ``sources`` are the columns of the table, ``numeric`` and ``categorical`` the inputs of the net
    that are computed from them. ``null_words`` are missing values in text files.

    Raises:
        UserError: if a text has a score by an encoder, which bundles do not hold.
    """
    if encoded := next(filter(is_encoded, schema.columns), None):
        raise UserError(
            f"data.text_encoder: expected null, because a bundle holds no encoder, got a run with "
            f"the input {encoded.name}; predict with `predict` or proj.load, or train a run with "
            "--data.text_encoder null to export."
        )
    return {
        "kind": "table",
        "placeholders": sorted(PLACEHOLDERS),
        "null_words": list(MISSING),
        "sources": [_source(columns) for columns in _by_source(schema.columns).values()],
        "numeric": [_number(column) for column in schema.numeric],
        "categorical": [
            {"source": column.source, "categories": list(column.categories)}
            for column in schema.categorical
        ],
    }


def _by_source(columns: tuple[Column, ...]) -> dict[str, list[Column]]:
    by_source: dict[str, list[Column]] = {}
    for column in columns:
        by_source.setdefault(column.source, []).append(column)
    return by_source


def _source(columns: list[Column]) -> dict[str, Any]:
    """Return how the values of a column of the table are read."""
    # As in `conform`, the last input of a column decides.
    column = columns[-1]
    reading = column_readings([column])[column.source]
    default = {"number": DEFAULT_FORMAT, "date": ISO_FORMS}.get(reading.type, "")
    texts = pl.Series(column.categories, dtype=pl.String)
    is_text = reading.type == "text"
    words = missing_words(column) if is_text else list(reading.placeholders)
    return {
        "name": column.source,
        # Older runs declare numbers and dates in text as text.
        "type": column.type if column.kind == "category" else _type(column, reading.type),
        "reading": reading.type,
        "format": reading.format or default,
        "placeholders": words,
        # Spaces around texts have a meaning if the training data have them.
        "keeps_spaces": has_outer_spaces(column.categories),
        # Other programs take categories that look like numbers for numbers.
        "numbers_as_text": bool(plain_numbers(texts).is_not_null().any()),
        "days_only": bool((texts.str.len_chars() == DAY_LENGTH).all()),
        "missing": any(c.missing for c in columns),
        "example": _example(columns),
    }


def _type(column: Column, read_as: str) -> str:
    return read_as if column.type == "text" else column.type


def _number(column: Column) -> dict[str, Any]:
    form = column.format if column.type == "number" and column.kind != "number" else ""
    low, high = (column.center + column.edges[i] for i in (0, -1))
    return {
        "source": column.source,
        "kind": column.kind,
        "format": form,
        "center": column.center,
        "low": low,
        "high": high,
        **({"word": column.categories[0]} if column.kind == "word" else {}),
        # JSON as it is in the schema, so that a bundle reads the same numbers.
        **({"model": list(column.categories[1:])} if column.kind == "score" else {}),
    }


def _example(columns: list[Column]) -> float | int | str | None:
    """Return a value that the column may hold.

    It is the median of training, the first category, or the most informative words.
    """
    column = columns[0]
    if words := [c.categories[0] for c in columns if c.kind == "word"]:
        return " ".join(words[:3])
    if column.kind == "category":
        return column.categories[0] if column.categories else None
    median = column.center + column.edges[len(column.edges) // 2]
    if column.kind == "number":
        # Edges are float32 numbers, which have 7 digits.
        short = median if column.center else float(f"{median:.7g}")
        return int(short) if float(short).is_integer() else short
    moment = _moment(column.kind, median)
    if column.type != "number":
        return _written(moment, (column.format or "%Y-%m-%d").split("|")[0])
    seconds = (moment - EPOCH).total_seconds()
    if column.format in UNITS:
        return round(seconds / UNITS[column.format])
    if column.format == EXCEL:
        return round(seconds / 86_400) + 25_569
    return int(_written(moment, column.format))


def _moment(kind: str, value: float) -> datetime:
    """Return a time with a part of a date: its days, month, weekday or hour."""
    if kind == "days":
        return EPOCH + timedelta(days=value)
    if kind == "month":
        return datetime(2020, int(value), 1)
    # 2020-06-01 is a Monday, whose number is 1.
    monday = datetime(2020, 6, 1)
    return monday + (timedelta(days=value - 1) if kind == "weekday" else timedelta(hours=value))


def _written(moment: datetime, form: str) -> str:
    """Return a time in a form of polars."""
    for item, other in (("%.f", ".%f"), ("%#z", "+00:00"), ("%k", "%H"), ("%l", "%I")):
        form = form.replace(item, other)
    return moment.strftime(form)


def plain_values(frame: pl.DataFrame) -> dict[str, list[Any]]:
    """Return columns as values that JSON has. Dates become text, and times and spans numbers."""
    columns = {}
    for name in frame.columns:
        values, dtype = frame.get_column(name), frame.schema[name]
        if dtype == pl.Float32:
            # 0.1 in float32 is another number in float64, and another category.
            values = values.cast(pl.String).cast(pl.Float64)
        elif dtype == pl.Datetime:
            # The value in UTC, whatever the time zone.
            values = values.cast(pl.Datetime("us")).dt.to_string("%Y-%m-%d %H:%M:%S%.6f")
        elif dtype in (pl.Date, pl.Categorical, pl.Enum):
            values = values.cast(pl.String)
        elif dtype in (pl.Duration, pl.Time):
            values = values.to_physical()
        elif dtype.is_decimal():
            values = values.cast(pl.Float64)
        columns[name] = values.to_list()
    return columns
