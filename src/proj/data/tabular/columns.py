"""Columns of a table as inputs of a net: fit, encode and check each column."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
import polars as pl

from proj.data.tabular.files import by_name, nameless
from proj.data.targets import TargetColumn
from proj.errors import UserError, nearest
from proj.schema import Array, Column

Override: TypeAlias = Literal["number", "category", "date", "drop"]
Type: TypeAlias = Literal["number", "text", "boolean", "date"]
NumberKind: TypeAlias = Literal["number", "days", "month", "weekday", "hour"]

# The number of bins that rtdl_num_embeddings uses by default.
BINS = 48
# A category of fewer training rows is encoded like an unseen one.
MIN_CATEGORY_ROWS = 5
# Less frequent categories are encoded like unseen ones.
MAX_CATEGORIES = 256
DATE_KINDS: tuple[NumberKind, ...] = ("days", "month", "weekday", "hour")
MICROSECONDS_PER_DAY = 86_400_000_000

# Text with more distinct values, and more than half as many as rows, is an identifier.
MAX_TEXT_CATEGORIES = 20

# Inputs are float32. A step above this share of the standard deviation hides differences.
MAX_ROUNDING = 0.01

# Category codes. The known categories follow.
MISSING_CODE, OTHER_CODE, FIRST_CODE = 0, 1, 2


def type_of(dtype: pl.DataType) -> Type | None:
    """Return the type of a column's values; None for types that no net takes, such as lists."""
    if dtype.is_numeric() or dtype in (pl.Duration, pl.Time):
        return "number"
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        return "text"
    if dtype == pl.Boolean:
        return "boolean"
    return "date" if dtype in (pl.Date, pl.Datetime) else None


def fit_columns(
    rows: pl.DataFrame, overrides: Mapping[str, Override]
) -> tuple[tuple[Column, ...], dict[str, str]]:
    """Return the inputs made from training ``rows``, and the reason for each column left out."""
    columns: list[Column] = []
    left_out: dict[str, str] = {}
    for name in rows.columns:
        override, values = overrides.get(name), nameless(rows, name)
        if override == "drop":
            left_out[name] = "as data.columns says"
        elif override is None and (reason := _why_useless(values)):
            left_out[name] = reason
        else:
            columns += _fit_column(name, values, override)
    return tuple(columns), left_out


def _why_useless(values: pl.Series) -> str | None:
    """Return the reason to leave a column out, because nothing general can be learned; or None."""
    present, distinct = values.drop_nulls(), values.n_unique()
    if (kind := type_of(values.dtype)) is None:
        return f"values of type {values.dtype} cannot be used"
    if distinct < 2:
        return "constant" if len(present) else "only missing values"
    distinct -= len(present) < len(values)  # Missing values count as one.
    if kind == "text" and distinct > max(MAX_TEXT_CATEGORIES, len(present) // 2):
        numbers = present.cast(pl.String).cast(pl.Float64, strict=False).is_not_null().sum()
        hint = f", {numbers / len(present):.0%} of which look like numbers" if numbers else ""
        return (
            f"an identifier or free text: {distinct} different values in {len(present)} rows{hint}"
        )
    if values.dtype.is_integer() and len(present) > 20 and distinct == len(values):
        span = int(present.max()) - int(present.min())  # type: ignore[arg-type]
        # Nearly every integer of the range occurs, once.
        if span < 4 * len(values):
            return "an identifier: it counts the rows"
    return None


def _fit_column(name: str, values: pl.Series, override: Override | None) -> list[Column]:
    kind = type_of(values.dtype)
    if kind is None:
        raise UserError(
            f"data.columns: expected numbers, text, booleans or dates in {name}, got "
            f"{values.dtype}; drop the column."
        )
    numbers: list[Column] = []
    if override == "date" or (override is None and kind == "date"):
        numbers = [_fit_numbers(name, values, kind, number_kind) for number_kind in DATE_KINDS]
    elif override == "number" or (override is None and kind == "number"):
        numbers = [_fit_numbers(name, values, kind, "number")]
    if varying := [column for column in numbers if len(column.edges) > 1]:
        return varying
    # A column with a single number only shows whether it is missing, which is a category.
    return [_fit_categories(name, values, kind)]


def _fit_categories(name: str, values: pl.Series, kind: Type) -> Column:
    column = Column(name, kind, "category", bool(values.null_count()), (), (), ())
    texts = values.to_frame(name).select(_category_text(column)).to_series().alias("").drop_nulls()
    counts = sorted(texts.value_counts(sort=True).rows(), key=lambda row: (-row[1], row[0]))
    categories = sorted(
        category for category, count in counts[:MAX_CATEGORIES] if count >= MIN_CATEGORY_ROWS
    )
    return Column(name, kind, "category", column.missing, (), (), tuple(categories))


def _fit_numbers(name: str, series: pl.Series, kind: Type, number_kind: NumberKind) -> Column:
    column = Column(name, kind, number_kind, False, (), (), ())
    values = series.to_frame(name).select(encode_column(column)).to_series().to_numpy()
    edges, shares = quantiles(values[np.isfinite(values)].astype(np.float64))
    missing = bool(np.isnan(values).any())
    return Column(
        name,
        kind,
        number_kind,
        missing,
        tuple(edges.tolist()),
        tuple(shares.tolist()),
        (),
    )


def quantiles(values: Array) -> tuple[Array, Array]:
    """Return bin edges of ``values``, and the share of all values below each edge.

    There are at most ``BINS + 1`` edges, all of them values, in ascending order. Values equal to an
    edge count half. A value as frequent as a bin has its own edge, and the other edges divide the
    remaining values equally: a column that is mostly zero still has many edges above zero.
    """
    ordered = np.sort(values)
    is_first = np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]
    edges, counts = ordered[is_first], np.diff(np.append(np.flatnonzero(is_first), len(ordered)))
    if len(edges) > BINS + 1:
        frequent = edges[counts * BINS > len(values)]
        others = ordered[~np.isin(ordered, frequent)]
        places = np.linspace(0, 1, BINS + 1 - len(frequent))
        edges = np.union1d(frequent, np.quantile(others, places, method="nearest"))
    below, below_or_equal = (np.searchsorted(ordered, edges, side) for side in ("left", "right"))
    return edges, (below + below_or_equal) / 2 / max(len(values), 1)


def encode_column(column: Column) -> pl.Expr:
    """Return the expression of a column's input: float32, NaN where missing, or int32 codes."""
    values = by_name(column.source)
    if column.kind == "category":
        known: pl.Expr | int = OTHER_CODE
        if column.categories:
            codes = list(range(FIRST_CODE, FIRST_CODE + len(column.categories)))
            known = _category_text(column).replace_strict(
                list(column.categories), codes, default=OTHER_CODE, return_dtype=pl.Int32
            )
        return pl.when(values.is_null()).then(MISSING_CODE).otherwise(known).cast(pl.Int32)
    return _exact_numbers(column).cast(pl.Float32, strict=False).fill_null(float("nan"))


def _exact_numbers(column: Column) -> pl.Expr:
    """Return the expression of a number or of a part of a date, before it is rounded."""
    values = by_name(column.source)
    if column.kind == "number":
        return values.cast(pl.Float64, strict=False)
    is_text = column.type == "text"
    date = (values.str.to_datetime(strict=False) if is_text else values).cast(pl.Datetime("us"))
    parts: dict[str, pl.Expr] = {
        "days": date.dt.epoch("us").cast(pl.Float64) / MICROSECONDS_PER_DAY,
        "month": date.dt.month(),
        "weekday": date.dt.weekday(),
        "hour": date.dt.hour() + date.dt.minute() / 60,
    }
    return parts[column.kind]


def rounding(rows: pl.DataFrame, column: Column) -> tuple[float, float, float] | None:
    """Return how float32 rounds a column of numbers, if that hides differences between rows.

    Returns:
        The largest number, the step that numbers of this size are rounded to, and the standard
        deviation of the numbers; None if the step is small beside it.
    """
    encoded = rows.select(_exact_numbers(column).cast(pl.Float64).alias("number"))
    numbers = encoded["number"].drop_nulls()
    numbers = numbers.filter(numbers.is_finite())
    if not len(numbers):
        return None
    values = numbers.to_numpy()
    size, spread = float(np.abs(values).max()), float(values.std())
    with np.errstate(over="ignore"):
        step = float(np.spacing(np.float32(size)))
    return (size, step, spread) if 0 < MAX_ROUNDING * spread < step else None


def _category_text(column: Column) -> pl.Expr:
    """Return a category as text. The numbers 7 and 7.0 are one category."""
    values = by_name(column.source)
    if column.type != "number":
        return values.cast(pl.String)
    is_integer = values.cast(pl.Float64) == values.cast(pl.Float64).round()
    integer = values.cast(pl.Int64, strict=False).cast(pl.String)
    return pl.when(is_integer).then(integer).otherwise(values.cast(pl.String))


def unreadable_values(rows: pl.DataFrame, column: Column) -> pl.Series:
    """Return the text values that are not the number or date that an override declares."""
    if column.type != "text" or column.kind == "category":
        return pl.Series([])
    is_wrong = by_name(column.source).is_not_null() & encode_column(column).is_nan()
    return rows.filter(is_wrong)[column.source]


def check_columns(table: pl.LazyFrame, columns: tuple[Column, ...], where: str) -> None:
    """Raise UserError unless the table has the columns with the types they had in training."""
    dtypes = table.collect_schema()
    for source, expected in dict.fromkeys((column.source, column.type) for column in columns):
        if source not in dtypes:
            raise UserError(
                f"{where}: expected a column {source}, as in training, got none."
                f"{nearest(source, dtypes)}"
            )
        actual = type_of(dtypes[source])
        if actual == expected:
            continue
        row, value = pl.int_range(pl.len()).alias("row"), by_name(source).alias("value")
        present = table.select(row, value).filter(pl.col("value").is_not_null())
        first = present.head(1).collect(engine="streaming")
        # A column without values fits any type.
        for row, value in first.rows():
            raise UserError(
                f"{where}: column {source}: expected values of type {expected}, as in training, "
                f"got {actual or dtypes[source]}, {value!r} in row {row}."
            )


def target_column(name: str, values: pl.Series, where: str) -> TargetColumn:
    """Return a target column as NumPy values and, for text and dates, the distinct texts."""
    kind, dtype = type_of(values.dtype), str(values.dtype)
    missing = values.is_null().to_numpy() if values.null_count() else None
    if kind is None:
        raise UserError(
            f"{where}: column {name}: expected targets that are numbers, text, booleans or "
            f"dates, got {dtype}; set data.target."
        )
    if kind == "boolean":
        present = values.fill_null(False)
        return TargetColumn(name, kind, present.to_numpy(), dtype, (), missing)
    if kind == "number":
        numbers = values if values.dtype.is_integer() else values.cast(pl.Float64)
        present = numbers.fill_null(0)
        return TargetColumn(name, kind, present.to_numpy(), dtype, (), missing)
    text = values.cast(pl.String)
    words = text.drop_nulls().unique().sort()
    positions = text.replace_strict(
        words, pl.Series(range(len(words)), dtype=pl.Int64), default=0, return_dtype=pl.Int64
    )
    codes = positions.fill_null(0).to_numpy()
    return TargetColumn(name, kind, codes, dtype, tuple(words.to_list()), missing)
