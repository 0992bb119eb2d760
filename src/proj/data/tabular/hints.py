"""Hints at rows that are not independent: several rows of one thing, rows in the order of time."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from proj.data.tabular.cache import map_array, save_array
from proj.data.tabular.columns import type_of, yaml_name
from proj.data.tabular.files import Source, by_name, collect_table, nameless
from proj.data.tabular.identifiers import names_time
from proj.data.tabular.readings import days_in_numbers
from proj.schema import Array, Finding

# Smaller tables, and columns of fewer values, show no structure.
MIN_ROWS, MIN_VALUES = 30, 10

# The first rows, which show whether a column is worth a look at all of it.
HEAD_ROWS = 50_000

# Names of columns that identify things, which have several rows each wherever these stand.
_THING = re.compile(
    r"(?i:(?:^|[^a-z])(?:ids?|subj|subject|patient|person|customer|user|client|participant|"
    r"respondent|student|pupil|child|animal|session)(?:$|[^a-z]))|(?<=[a-z])I[dD]$|(?i:[a-z]{4}id$)"
)
# Names of times as numbers.
_TIME = re.compile(
    r"(?i)(?:^|[^a-z])"
    r"(?:years?|yrs?|months?|mnths?|weeks?|days?|dates?|hours?|times?|quarter|period|t)"
    r"(?:$|[^a-z])|(?:time|date|year|day)$"
)
# Names of numbers that count rows or repetitions.
_COUNT = re.compile(r"(?i)(?:^|[^a-z])(?:season|wave|visit|trial|round|obs|index|row|rownames|rep)")

CANDIDATES = "candidates.json"


class Candidate(NamedTuple):
    """A column to split the rows by.

    Attributes:
        option: ``group`` or ``time``.
        column: name of the column.
        ranks: numbers from 0 that stand for its values, in their order [rows].
    """

    option: str
    column: str
    ranks: Array


def save_candidates(folder: Path, candidates: list[Candidate]) -> None:
    """Write the candidates for the training rows."""
    names = [(candidate.option, candidate.column) for candidate in candidates]
    (folder / CANDIDATES).write_text(json.dumps(names), encoding="utf-8")
    for i, candidate in enumerate(candidates):
        save_array(folder / f"candidate_{i}.npy", candidate.ranks)


def read_candidates(folder: Path) -> list[Candidate]:
    """Return the candidates for the training rows; none if the folder was written without."""
    if not (file := folder / CANDIDATES).exists():
        return []
    names = json.loads(file.read_text(encoding="utf-8"))
    arrays = (map_array(folder / f"candidate_{i}.npy").numpy() for i in range(len(names)))
    return [Candidate(o, name, a) for (o, name), a in zip(names, arrays, strict=True)]


def ranks_of(values: pl.Series) -> Array:
    """Return the dense ranks of values from 0, and -1 for missing values: [rows] int64."""
    return values.rank("dense").fill_null(0).to_numpy().astype(np.int64) - 1


def find_hints(
    source: Source, table: pl.LazyFrame, names: list[str]
) -> tuple[list[Finding], list[Candidate]]:
    """Return findings about columns of a typed table to split the rows by, and these columns.

    A column of dates may be a candidate without a finding, if several rows have one date.
    """
    head = collect_table(source, table.select(map(by_name, names)).head(HEAD_ROWS))
    if len(head) < MIN_ROWS:
        return [], []
    ordered: list[tuple[Finding, Candidate]] = []
    repeating: dict[int, tuple[Finding, Candidate]] = {}
    dates: list[Candidate] = []
    for name in names:
        values = nameless(head, name)
        if type_of(values.dtype) in (None, "boolean"):
            continue
        if not (_is_ordered(name, values) or _ascends(values) or _repeats(name, values)):
            continue
        values = nameless(collect_table(source, table.select(by_name(name))), name)
        if _is_ordered(name, values):
            candidate = Candidate("time", name, ranks_of(values))
            ordered.append((_order_finding(name, values), candidate))
        elif _ascends(values):
            dates.append(Candidate("time", name, ranks_of(values)))
        elif _repeats(name, values):
            candidate = Candidate("group", name, ranks_of(values))
            hint = _repeat_finding(name, values), candidate
            # Of a name and a code of one thing, the first is enough.
            repeating.setdefault(values.drop_nulls().n_unique(), hint)
    found = [*ordered[:1], *repeating.values()]
    candidates = [candidate for _, candidate in found]
    # Rows of several things on one day are no hint, but may be alike.
    return [finding for finding, _ in found], candidates + ([] if ordered else dates[:1])


def _order_finding(name: str, values: pl.Series) -> Finding:
    return Finding(
        f"the rows are in the order of column {name}: {values.n_unique()} values in "
        f"{len(values)} rows",
        "rows between training rows are tested, which is easier than later rows",
        f"if the model will predict later rows, set data.time: {yaml_name(name)}",
    )


def _repeat_finding(name: str, values: pl.Series) -> Finding:
    return Finding(
        f"column {name} repeats: {values.drop_nulls().n_unique()} values in {len(values)} rows",
        "rows of one value may be in train and in test, which is easier than new values",
        f"if the model will predict rows of new values, set data.group: {yaml_name(name)}",
    )


def _is_ordered(name: str, values: pl.Series) -> bool:
    """Return whether nearly unique times ascend or descend with the rows.

    Numbers are times by their name, if they are evenly spaced.
    """
    if values.null_count() or values.n_unique() < 0.9 * len(values):
        return False
    if not (values.is_sorted() or values.is_sorted(descending=True)):
        return False
    if _is_date(values):
        return True
    if not values.dtype.is_numeric() or not _TIME.search(name):
        return False
    steps = values.cast(pl.Float64).diff().drop_nulls()
    typical = float(steps.median())  # type: ignore[arg-type]
    return int(((steps - typical).abs() <= 0.01 * abs(typical)).sum()) > 0.8 * len(steps)


def _is_date(values: pl.Series) -> bool:
    is_integer = values.dtype.is_integer()
    return type_of(values.dtype) == "date" or (is_integer and bool(days_in_numbers(values)))


def _ascends(values: pl.Series) -> bool:
    """Return whether dates ascend or descend with the rows, of which several may have one date."""
    if values.null_count() or values.n_unique() < MIN_VALUES or not _is_date(values):
        return False
    return values.is_sorted() or values.is_sorted(descending=True)


def _repeats(name: str, values: pl.Series) -> bool:
    """Return whether a column identifies things, each with several rows of similar number.

    It does if its name says so, or if the rows of each value follow one another.
    """
    is_text = type_of(values.dtype) == "text"
    is_time = _TIME.search(name) or names_time(name)
    if not (values.dtype.is_integer() or is_text) or is_time or _COUNT.search(name):
        return False
    present = values.drop_nulls()
    counts = present.alias("v").value_counts(name="n")["n"].cast(pl.Float64)
    if not MIN_VALUES <= len(counts) <= len(values) / 2 or len(present) < 0.95 * len(values):
        return False
    if counts.filter(counts > 1).sum() < 0.9 * len(values):
        return False
    spread = float(counts.std()) / float(counts.mean())  # type: ignore[arg-type]
    if _THING.search(name):
        return spread < 1.5
    # Numbers in ascending order may be anything, but of an amount each has its own number of rows.
    is_even = is_text or bool((counts == counts.median()).mean() > 0.8)  # type: ignore[operator]
    blocks = 1 + int((present != present.shift()).sum())
    return spread < 1 and is_even and blocks == len(counts)
