"""Rows that Python code gives to a model: frames, dicts of columns, lists of dicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from proj.data.tabular.files import nan_to_null
from proj.errors import UserError


def to_frame(rows: Any) -> pl.DataFrame:
    """Return rows as a polars frame without NaN.

    ``rows`` is a polars or pandas frame, a dict of columns, a list of dicts, or one row as a dict.
    """
    if isinstance(rows, pl.DataFrame | pl.LazyFrame):
        return nan_to_null(rows.lazy()).collect()
    if hasattr(rows, "notna"):
        # The missing values of pandas compare as neither equal nor unequal.
        rows = rows.astype(object).where(rows.notna(), None)
        names = list(rows.columns)
        return _frame({str(name): list(rows[name]) for name in names})
    if isinstance(rows, Mapping):
        return _frame(_columns(rows))
    is_list = isinstance(rows, Sequence) and not isinstance(rows, str)
    if is_list and all(isinstance(row, Mapping) for row in rows):
        # A row may leave out what is missing.
        keys = dict.fromkeys(name for row in rows for name in row)
        return _frame({str(name): [row.get(name) for row in rows] for name in keys})
    raise UserError(
        "expected rows as a polars or pandas frame, a dict of columns or a list of dicts, got "
        f"{type(rows).__name__}."
    )


def _columns(rows: Mapping[Any, Any]) -> dict[str, list[Any]]:
    """Return a dict of columns. A dict of single values is one row."""
    is_single = {str(n): isinstance(v, str) or not hasattr(v, "__len__") for n, v in rows.items()}
    if is_single and all(is_single.values()):
        return {str(name): [value] for name, value in rows.items()}
    if any(is_single.values()):
        name = next(name for name, single in is_single.items() if single)
        raise UserError(
            f"expected a dict of columns, or of single values, got both: {name} is a single value."
        )
    columns = {str(name): list(values) for name, values in rows.items()}
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in list(columns.items())[:5])
        raise UserError(f"expected columns of equal length, got {lengths}.")
    return columns


def _frame(columns: dict[str, list[Any]]) -> pl.DataFrame:
    without_nan = {
        name: [value if value == value else None for value in values]
        for name, values in columns.items()
    }
    return pl.DataFrame(without_nan, strict=False)
