"""Words, blanks and spaces in text files that change a value: findings that count them."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from proj.data.tabular.files import MISSING, Source, by_name, collect_table, nameless
from proj.errors import quoted
from proj.schema import Array, Finding

# Columns and words that a finding lists.
MAX_LISTED = 5


class TextCounts(NamedTuple):
    """Rows of a column without a value, with blanks only, and with spaces around a value."""

    missing: int
    blank: int
    padded: int


def count_texts(source: Source, names: Iterable[str]) -> dict[str, TextCounts]:
    """Count the unusual values of columns of text."""
    names, counts = list(names), []
    for name in names:
        values = by_name(name)
        length, kept = values.str.len_bytes(), values.str.strip_chars().str.len_bytes()
        counts += [values.null_count(), (kept == 0).sum(), ((kept > 0) & (kept < length)).sum()]
    if not names:
        return {}
    numbered = [count.alias(str(i)) for i, count in enumerate(counts)]
    row = collect_table(source, source.table.select(numbered)).row(0)
    return {name: TextCounts(*row[3 * i : 3 * i + 3]) for i, name in enumerate(names)}


def find_missing_words(source: Source, missing: Mapping[str, int]) -> list[Finding]:
    """Find words such as NA that count as missing, in columns that have missing values.

    ``missing`` holds the number of missing values of each column.
    """
    names = [name for name, count in missing.items() if count]
    if source.with_words is None or not names:
        return []
    counts = _count_words(source, source.with_words, names)
    by_column, by_word = counts.sum(axis=1), counts.sum(axis=0)
    used = {n: int(k) for n, k in zip(names, by_column, strict=True) if k}
    if not used:
        return []
    words = {w: int(k) for w, k in zip(MISSING, by_word, strict=True) if k}
    listed = _listed(_descending(words), with_quotes=True)
    where = f"column {next(iter(used))}"
    if len(used) > 1:
        where = f"{len(used)} columns ({_listed(_descending(used))})"
    total = sum(used.values())
    what = f"{total} values of {where} are words for missing values"
    if total == 1:
        what = f"1 value of {where} is a word for a missing value"
    return [
        Finding(
            f"{what}: {listed}",
            f"{'it counts' if total == 1 else 'they count'} as missing, as empty fields do",
            "if a word has another meaning, write another one in the file",
        )
    ]


def _count_words(source: Source, table: pl.LazyFrame, names: list[str]) -> Array:
    """Return how often each column has each word: [columns, words]."""
    # Sums, because the words of a large table would not fit into the memory.
    sums = [(by_name(name) == word).sum() for name in names for word in MISSING]
    numbered = [count.alias(str(i)) for i, count in enumerate(sums)]
    row = collect_table(source, table.select(numbered)).row(0)
    return np.asarray(row, np.int64).reshape(len(names), len(MISSING))


def _descending(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def find_blanks(source: Source, name: str, counts: TextCounts) -> list[Finding]:
    """Find blanks that count as missing, and values that are equal without their outer spaces."""
    findings = []
    if counts.blank:
        findings.append(
            Finding(
                f"{counts.blank} values of column {name} are empty texts or spaces"
                if counts.blank > 1
                else f"1 value of column {name} is an empty text or spaces",
                "they count as missing" if counts.blank > 1 else "it counts as missing",
                "if they have a meaning, write it in the file",
                name,
            )
        )
    if not counts.padded:
        return findings
    table = collect_table(source, source.table.select(by_name(name)))
    values = nameless(table, name).drop_nulls().alias("v").value_counts(name="n").sort("v")
    plain = values["v"].str.strip_chars()
    alike = values.filter((plain != "") & plain.is_duplicated())
    if len(alike):
        same = alike.filter(alike["v"].str.strip_chars() == alike["v"][0].strip())["v"]
        findings.append(
            Finding(
                f"{len(alike)} values of column {name} differ only in outer spaces, in "
                f"{alike['n'].sum()} rows, such as {' and '.join(map(quoted, same[:3]))}",
                "the spaces are removed, and values that are then equal count as one",
                "write them differently, if they mean different things",
                name,
            )
        )
    return findings


def _listed(counts: Mapping[str, int], with_quotes: bool = False) -> str:
    parts = [f"{word!r} ({n})" if with_quotes else f"{word} {n}" for word, n in counts.items()]
    return ", ".join(parts[:MAX_LISTED]) + ", …" * (len(parts) > MAX_LISTED)
