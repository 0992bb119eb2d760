"""Columns of a table as inputs of a net: what each one is, what is left out and why, and how it becomes numbers."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import polars as pl

from proj.errors import UserError, nearest
from proj.schema import Column

Override: TypeAlias = Literal["number", "category", "date", "drop"]

BINS = 48  # as in rtdl_num_embeddings
RARE = 5  # a category of fewer training rows counts as another one, together with those never seen
MOST = 256  # categories kept, the most frequent ones
KINDS: tuple[Literal["days", "month", "weekday", "hour"], ...] = (
    "days",
    "month",
    "weekday",
    "hour",
)

Array: TypeAlias = np.ndarray[Any, Any]
Type: TypeAlias = Literal["number", "text", "boolean", "date"]


def type_of(dtype: pl.DataType) -> Type | None:
    """What a column's values are; None for lists, structures and other things that no net takes."""
    if dtype.is_numeric() or dtype in (pl.Duration, pl.Time):
        return "number"
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        return "text"
    return "boolean" if dtype == pl.Boolean else "date" if dtype in (pl.Date, pl.Datetime) else None


def fit(
    rows: pl.DataFrame, overrides: Mapping[str, Override]
) -> tuple[tuple[Column, ...], dict[str, str]]:
    """The inputs that the columns of training ``rows`` give, and of the columns left out, why."""
    columns: list[Column] = []
    left: dict[str, str] = {}
    for name in rows.columns:
        kind = overrides.get(name)
        why = "as data.columns says" if kind == "drop" else None if kind else useless(rows[name])
        if why is None:
            columns += _inputs(rows[name], kind)
        else:
            left[name] = why
    return tuple(columns), left


def useless(values: pl.Series) -> str | None:
    """Why nothing general can be learned from a column; None if it can."""
    given, distinct = values.drop_nulls(), values.n_unique()
    if (kind := type_of(values.dtype)) is None:
        return f"values of type {values.dtype} cannot be used"
    if distinct < 2:
        return "constant" if len(given) else "nothing but missing values"
    if kind == "text" and (distinct := given.n_unique()) > max(20, len(given) // 2):
        numbers = int(given.cast(pl.String).cast(pl.Float64, strict=False).is_not_null().sum())
        hint = f", of which {numbers / len(given):.0%} look like numbers" if numbers else ""
        return f"an identifier or free text: {distinct} different values in {len(given)} rows{hint}"
    if values.dtype.is_integer() and len(given) > 20 and given.n_unique() == len(values):
        low, high = _integers(given)
        if high - low < 4 * len(values):  # nearly every number is there: it counts the rows
            return "an identifier: it counts the rows"
    return None


def _integers(values: pl.Series) -> tuple[int, int]:
    return int(values.min()), int(values.max())  # type: ignore[arg-type]


def _inputs(values: pl.Series, override: Override | None) -> list[Column]:
    kind = type_of(values.dtype)
    if kind is None:
        raise UserError(
            f"data.columns: {values.name} has values of type {values.dtype}, which cannot be used; drop it."
        )
    frame = values.to_frame()
    numbers: list[Column] = []
    if override == "date" or (override is None and kind == "date"):
        numbers = [_numbers(frame, kind, part) for part in KINDS]
    elif override == "number" or (override is None and kind == "number"):
        numbers = [_numbers(frame, kind, "number")]
    if several := [column for column in numbers if len(column.edges) > 1]:
        return several  # else all there is to know is whether a value is missing
    column = Column(values.name, kind, "category", bool(values.null_count()), (), (), ())
    counts = frame.select(_text(column)).to_series().drop_nulls().value_counts(sort=True).rows()
    kept = sorted(
        name for name, count in sorted(counts, key=lambda c: (-c[1], c[0]))[:MOST] if count >= RARE
    )
    return [Column(values.name, kind, "category", column.missing, (), (), tuple(kept))]


def _numbers(frame: pl.DataFrame, kind: Type, part: Any) -> Column:
    column = Column(frame.columns[0], kind, part, False, (), (), ())
    values = frame.select(encode(column)).to_series().to_numpy()
    given = values[np.isfinite(values)].astype(np.float64)
    edges, shares = quantiles(given)
    missing = bool(np.isnan(values).any())
    return Column(
        column.source, kind, part, missing, tuple(edges.tolist()), tuple(shares.tolist()), ()
    )


def quantiles(values: Array) -> tuple[Array, Array]:
    """At most ``BINS + 1`` of the values, ascending, and the share of all values below each (half of its equals count).

    A value as frequent as a bin has an edge of its own, and the rest have the other edges at equal shares of them: of a
    column that is mostly zero, what is not zero still has many.
    """
    edges, counts = np.unique(values, return_counts=True)
    if len(edges) > BINS + 1:
        frequent = edges[counts * BINS > len(values)]
        others = values[~np.isin(values, frequent)]
        places = np.linspace(0, 1, BINS + 1 - len(frequent))
        edges = np.union1d(frequent, np.quantile(others, places, method="nearest"))
    ordered = np.sort(values)
    below, upto = (np.searchsorted(ordered, edges, side) for side in ("left", "right"))
    return edges, (below + upto) / 2 / max(len(values), 1)


def not_read(rows: pl.DataFrame, column: Column) -> pl.Series:
    """Values of text that is to be numbers or dates, and that are none: they count as missing."""
    if column.type != "text" or column.kind == "category":
        return pl.Series([])
    return rows.filter(pl.col(column.source).is_not_null() & encode(column).is_nan())[column.source]


def encode(column: Column) -> pl.Expr:
    """The column's input: float32, NaN where missing; or int32 numbers of categories."""
    values = pl.col(column.source)
    if column.kind == "category":
        codes = range(2, 2 + len(column.categories))
        known = _text(column).replace_strict(
            list(column.categories), list(codes), default=1, return_dtype=pl.Int32
        )
        return (
            pl.when(values.is_null())
            .then(0)
            .otherwise(known if column.categories else 1)
            .cast(pl.Int32)
        )
    if column.kind == "number":
        numbers = values.cast(pl.Float32, strict=False)
    else:
        moment = (values.str.to_datetime(strict=False) if column.type == "text" else values).cast(
            pl.Datetime("us")
        )
        numbers = {
            "days": moment.dt.epoch("us").cast(pl.Float64) / 86_400_000_000,
            "month": moment.dt.month(),
            "weekday": moment.dt.weekday(),
            "hour": moment.dt.hour() + moment.dt.minute() / 60,
        }[column.kind].cast(pl.Float32)
    return numbers.fill_null(float("nan"))


def _text(column: Column) -> pl.Expr:
    """A category as text; whole numbers read alike whether a file says 7 or 7.0."""
    values = pl.col(column.source)
    if column.type != "number":
        return values.cast(pl.String)
    whole = values.cast(pl.Float64) == values.cast(pl.Float64).round()
    return (
        pl.when(whole)
        .then(values.cast(pl.Int64, strict=False).cast(pl.String))
        .otherwise(values.cast(pl.String))
    )


def check(table: pl.LazyFrame, columns: tuple[Column, ...], where: str) -> None:
    """Raise UserError unless the table has the columns with the types they had in training."""
    names = table.collect_schema()
    for column in dict.fromkeys((c.source, c.type) for c in columns):
        source, wanted = column
        if source not in names:
            raise UserError(
                f"{where}: expected a column {source}, as in training, got none.{nearest(source, names)}"
            )
        got = type_of(names[source])
        if got == wanted:
            continue
        row = (
            table.with_row_index("_row")
            .filter(pl.col(source).is_not_null())
            .select("_row", source)
            .head(1)
        )
        for number, value in row.collect(
            engine="streaming"
        ).rows():  # a column that is empty has any type
            raise UserError(
                f"{where}: column {source}: expected values of type {wanted}, as in training, "
                f"got {got or names[source]}, {value!r} in row {number}."
            )
