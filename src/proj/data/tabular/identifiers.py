"""Columns that name things: identifiers, from which nothing general is learned, and codes."""

import re
from typing import Final

import polars as pl

from proj.data.tabular.split_column import is_split_column

# A category of fewer training rows is encoded like an unseen one.
MIN_CATEGORY_ROWS: Final = 5
# Text with more distinct values, and more than half as many as rows, is an identifier.
MAX_TEXT_CATEGORIES: Final = 20
# A column of whole numbers may count the rows if it has more of them.
MIN_COUNTED_ROWS: Final = 20

# The word at the end of a name, or a capital one after a small letter, as in teamIDfg.
_CODE_NAME: Final = re.compile(r"(?:^|[^a-z])(?:id|identifier|zip)\d*$|code\d*$", re.IGNORECASE)
_CAMEL_CODE_NAME: Final = re.compile(r"[a-z](?:ID|Id(?![a-z]))")
_TIME_NAME: Final = re.compile(
    r"(?:^|[^a-z])(?:year|yr|date|time|timestamp|month|week|day|hour|quarter|period)", re.IGNORECASE
)
_CAMEL_TIME_NAME: Final = re.compile(r"[a-z](?:Year|Yr|Date|Time|Month|Week|Day|Hour)")


def names_time(name: str) -> bool:
    """Return whether the name of a column says that its values are times.

    >>> names_time("ordinal_date"), names_time("YearBuilt"), names_time("candidate")
    (True, True, False)
    """
    return bool(_TIME_NAME.search(name) or _CAMEL_TIME_NAME.search(name))


def names_code(name: str) -> bool:
    """Return whether the name of a column says that its numbers only stand for things.

    >>> [names_code(n) for n in ("StoreID", "postcode", "Postal Code", "paid", "yearID", "grid")]
    [True, True, True, False, False, False]
    """
    is_code = _CODE_NAME.search(name) or _CAMEL_CODE_NAME.search(name)
    return bool(is_code) and not re.search("year", name, re.IGNORECASE)


def holds_codes(name: str, values: pl.Series) -> bool:
    """Return whether a column of whole numbers has the name of a code."""
    if not values.dtype.is_numeric() or not names_code(name):
        return False
    present = values.drop_nulls()
    return bool(values.dtype.is_integer() or (present == present.round()).all())


def why_left_out(name: str, values: pl.Series, is_date: bool) -> str | None:
    """Return the reason to leave a column of training rows out; None if there is none.

    ``is_date`` tells whether numbers are read as dates.
    """
    present = values.drop_nulls()
    is_code = not is_date and holds_codes(name, values)
    if values.dtype.is_float() and len(present) and not is_code:
        # Counting different fractions takes long, and only one number matters.
        is_constant = len(present) == len(values) and present.min() == present.max()
        return "constant" if is_constant else None
    distinct = present.n_unique()
    if distinct == 0 or (distinct == 1 and len(present) == len(values)):
        return "constant" if len(present) else "only missing values"
    is_text = not (values.dtype.is_numeric() or values.dtype.is_temporal())
    if values.dtype == pl.Boolean:
        return None
    if is_text and is_split_column(present):
        return f"it names the split of each row; to split by it, set data.split: {name}"
    if (is_text or is_code) and distinct > max(MAX_TEXT_CATEGORIES, len(present) // 2):
        kind = "an identifier or free text" if is_text else "an identifier"
        return f"{kind}: {distinct} different values in {len(present)} training rows"
    if (is_text or is_code) and not values.null_count() and not _has_frequent(present):
        return f"none of its {distinct} values is in {MIN_CATEGORY_ROWS} training rows or more"
    if not is_date and not names_time(name) and _counts_rows(values):
        return "an identifier: it counts the rows"
    return None


def _has_frequent(values: pl.Series) -> bool:
    """Return whether a value is frequent enough for a category of its own."""
    counts = values.cast(pl.String).alias("v").value_counts(name="n")["n"]
    return bool((counts >= MIN_CATEGORY_ROWS).any())


def _counts_rows(values: pl.Series) -> bool:
    """Return whether nearly every whole number of a range occurs, once."""
    if not values.dtype.is_integer() or len(values) <= MIN_COUNTED_ROWS:
        return False
    if values.null_count() or values.n_unique() < len(values):
        return False
    span = int(values.max()) - int(values.min())  # type: ignore[arg-type]
    return span < 4 * len(values)
