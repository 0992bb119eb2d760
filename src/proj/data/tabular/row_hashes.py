"""Hashes of a table's rows as its files have them, to find rows that are exact copies."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import polars as pl

from proj.data.tabular.files import (
    Source,
    by_name,
    collect_table,
    iter_chunks,
    nameless,
    open_table,
)
from proj.data.tabular.identifiers import names_time
from proj.data.tabular.words import normalize
from proj.schema import Array

# First values of a column that show that it does not count the rows.
COUNTER_SAMPLE = 1_000


def hash_rows(files: list[Path], ignored: list[str], texts: Collection[str] = ()) -> Array:
    """Return a 64-bit hash of each row: [rows] uint64.

    Columns in ``ignored`` and columns that count the rows do not matter. Of those in ``texts``, the
    words do, but not capitals, spaces and punctuation.
    """
    with open_table(files) as source:
        dtypes = source.table.collect_schema()
        names = sorted(set(dtypes.names()) - set(ignored))
        names = [name for name in names if not _is_counter(source, name)]
        hashed = [n for n in names if not dtypes[n].is_nested() and dtypes[n] != pl.Object]
        # The values of categories are numbered in each file anew.
        columns = [
            normalize(by_name(n))
            if n in texts
            else by_name(n).cast(pl.String)
            if dtypes[n] in (pl.Categorical, pl.Enum)
            else by_name(n)
            for n in hashed
        ]
        numbered = [column.alias(str(i)) for i, column in enumerate(columns)]
        if not numbered:
            rows = int(collect_table(source, source.table.select(pl.len())).item())
            return np.zeros(rows, np.uint64)
        chunks = iter_chunks(source, source.table.select(numbered))
        return np.concatenate([chunk.hash_rows(seed=0).to_numpy() for _, chunk in chunks])


def _is_counter(source: Source, name: str) -> bool:
    """Return whether a column numbers the rows: different whole numbers without large gaps.

    A column of times does not: rows of different times are no copies.
    """
    if names_time(name):
        return False
    column = source.table.select(by_name(name))
    for table in (column.head(COUNTER_SAMPLE), column):
        values = nameless(collect_table(source, table), name)
        if not (values.dtype.is_integer() or values.dtype == pl.String):
            return False
        numbers = values.cast(pl.Int64, strict=False)
        if numbers.null_count() or numbers.n_unique() < len(numbers):
            return False
        span = int(numbers.max()) - int(numbers.min())  # type: ignore[arg-type]
    return span < 4 * len(numbers)


def columns_of_text(files: list[Path]) -> set[str]:
    """Return the names of the columns that are read as text. In text files these are all."""
    with open_table(files) as source:
        dtypes = source.table.collect_schema()
        return {name for name, dtype in dtypes.items() if dtype == pl.String}
