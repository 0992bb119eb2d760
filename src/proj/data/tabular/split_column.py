"""Columns that name the split of each row, as publishers of data sets write them."""

import polars as pl

from proj.data.tabular.row_splits import SPLIT_WORDS
from proj.errors import UserError, quoted


def name_splits(values: pl.Series, name: str) -> pl.Series:
    """Return train, val or test for each value of a column without missing values.

    Raises UserError for a value that names no split.
    """
    splits = _to_splits(values)
    if (invalid := values.filter(splits.is_null())).len():
        raise UserError(
            f"data.split: expected train, val or test in column {name}, got {quoted(invalid[0])}."
        )
    return splits


def is_split_column(values: pl.Series) -> bool:
    """Return whether all texts of a column name splits, train and another one among them."""
    splits = _to_splits(values.drop_nulls().unique())
    return not splits.null_count() and splits.n_unique() > 1 and "train" in splits


def _to_splits(values: pl.Series) -> pl.Series:
    words = values.cast(pl.String).str.strip_chars().str.to_lowercase()
    return words.replace_strict(SPLIT_WORDS, default=None, return_dtype=pl.String)
