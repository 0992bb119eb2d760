"""Words, blanks and spaces in text files that change a value: findings that count them."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import polars as pl

from proj.data.base import Finding
from proj.data.tabular.files import MISSING, Source, by_name, collect_table, nameless

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
    words = [
        by_name(name).filter(by_name(name).is_in(list(MISSING))).implode().alias(str(i))
        for i, name in enumerate(names)
    ]
    found = collect_table(source, source.with_words.select(words))
    columns = {name: found[str(i)].explode().drop_nulls() for i, name in enumerate(names)}
    columns = {name: values for name, values in columns.items() if len(values)}
    if not columns:
        return []
    counts = pl.concat([v.alias("v") for v in columns.values()]).value_counts(sort=True, name="n")
    listed = _listed(dict(counts.rows()), quoted=True)
    by_column = {name: len(values) for name, values in columns.items()}
    where = f"column {next(iter(columns))}"
    if len(columns) > 1:
        by_column = dict(sorted(by_column.items(), key=lambda item: -item[1]))
        where = f"{len(columns)} columns ({_listed(by_column)})"
    total = sum(by_column.values())
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


def find_blanks(source: Source, name: str, counts: TextCounts) -> list[Finding]:
    """Find blanks that count as missing, and values that are equal without their outer spaces."""
    findings = []
    if counts.blank:
        findings.append(
            Finding(
                f"{counts.blank} values of column {name} are empty texts or spaces",
                "they count as missing",
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
                f"{alike['n'].sum()} rows, such as {' and '.join(map(repr, same[:3]))}",
                "the spaces are removed, and values that are then equal count as one",
                "write them differently, if they mean different things",
                name,
            )
        )
    return findings


def _listed(counts: Mapping[str, int], quoted: bool = False) -> str:
    parts = [f"{word!r} ({n})" if quoted else f"{word} {n}" for word, n in counts.items()]
    return ", ".join(parts[:MAX_LISTED]) + ", …" * (len(parts) > MAX_LISTED)
