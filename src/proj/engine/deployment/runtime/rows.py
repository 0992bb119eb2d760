"""Rows in any form as columns of plain values: frames, dicts, lists of dicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Columns = dict[str, list[Any]]


class InputError(ValueError):
    """A row that does not have the form of the training data.

    Attributes:
        column: name of the column; empty if the error is about the rows as a whole.
        row: position of the row; None if the error is about a whole column.
    """

    def __init__(self, message: str, column: str = "", row: int | None = None) -> None:
        place = f"column {column}: " if column else ""
        place = f"row {row}: {place}" if row is not None else place
        super().__init__(place + message)
        self.column, self.row, self.reason = column, row, message


class UnreadableWarning(UserWarning):
    """Texts of a column could not be read and count as missing."""


def to_columns(rows: Any) -> Columns:
    """Return rows as lists of values by column name.

    Args:
        rows: a list of dicts, one dict, a dict of columns, or a frame of pandas or polars.

    Raises:
        InputError: for other types, and for columns of unequal length.
    """
    if hasattr(rows, "collect"):  # a LazyFrame of polars
        rows = rows.collect()
    if hasattr(rows, "notna"):  # a frame of pandas, whose missing values are not equal to anything
        rows = rows.astype(object).where(rows.notna(), None)
        return {str(name): rows[name].tolist() for name in list(rows.columns)}
    if hasattr(rows, "get_columns"):  # a frame of polars
        return {column.name: column.to_list() for column in rows.get_columns()}
    if isinstance(rows, Mapping):
        return _from_dict(rows)
    is_list = isinstance(rows, Sequence) and not isinstance(rows, str | bytes)
    if is_list and all(isinstance(row, Mapping) for row in rows):
        names = dict.fromkeys(name for row in rows for name in row)
        return {str(name): [row.get(name) for row in rows] for name in names}
    raise InputError(
        "expected rows as a list of dicts, one dict, a dict of columns, or a frame of pandas or "
        f"polars, got {type(rows).__name__}"
    )


def _from_dict(rows: Mapping[Any, Any]) -> Columns:
    """Return a dict of columns. A dict of single values is one row."""
    single = {
        str(name): isinstance(value, str | bytes) or not hasattr(value, "__len__")
        for name, value in rows.items()
    }
    if all(single.values()):
        return {str(name): [value] for name, value in rows.items()}
    if any(single.values()):
        name = next(name for name, is_single in single.items() if is_single)
        raise InputError(
            "expected a dict of columns or of single values, got both: this is a single value", name
        )
    columns = {str(name): list(values) for name, values in rows.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in list(lengths.items())[:5])
        raise InputError(f"expected columns of equal length, got {listed}")
    return columns


def count_rows(columns: Columns) -> int:
    """Return the number of rows."""
    return len(next(iter(columns.values()), []))


def match_names(columns: Columns, names: Sequence[str]) -> Columns:
    """Return the columns ``names``. Other programs keep spaces around names, or leave them out.

    Raises:
        InputError: if one of them is not there.
    """
    given = list(columns)
    if not given:  # an empty list of rows
        return {name: [] for name in names}
    found = {}
    for name in names:
        alike = [
            other
            for i, other in enumerate(given)
            if other == name or other.strip() == name or name == _unnamed(i, other)
        ]
        if not alike:
            listed = ", ".join(given[:20]) or "none"
            raise InputError(f"expected this column, as in training, got {listed}", name)
        found[name] = columns[name if name in columns else alike[0]]
    return found


def _unnamed(position: int, name: str) -> str:
    """Return the name in training of a column that polars or pandas calls unnamed."""
    is_unnamed = not name.strip() or name == f"Unnamed: {position}"
    return f"column_{position + 1}" if is_unnamed else ""


def is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN or NaT."""
    if value is None:
        return True
    if isinstance(value, float | np.floating):
        return bool(value != value)
    return bool(isinstance(value, np.datetime64 | np.timedelta64) and np.isnat(value))
