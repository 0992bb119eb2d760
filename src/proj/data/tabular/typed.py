"""Tables with typed columns: text is read as numbers, dates and booleans, with findings."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import polars as pl

from proj.data.tabular.columns import state, type_of, yaml_name
from proj.data.tabular.files import (
    MISSING,
    QUICK,
    Source,
    by_name,
    collect_table,
    iter_chunks,
    nameless,
)
from proj.data.tabular.missing_words import count_texts, find_blanks, find_missing_words
from proj.data.tabular.numbers import DEFAULT_FORMAT
from proj.data.tabular.readings import (
    READABLE_SHARE,
    SAMPLE_ROWS,
    ColumnType,
    Reading,
    Tally,
    Wish,
    column_readings,
    find_readings,
    read,
    read_column,
)
from proj.errors import UserError, nearest, quoted
from proj.schema import Column, Finding


class TypedTable(NamedTuple):
    """A table whose text columns are read, the readings by column, and findings.

    ``findings`` are those of each column, ``general`` those of several columns.
    """

    table: pl.LazyFrame
    readings: dict[str, Reading]
    findings: dict[str, list[Finding]]
    general: tuple[Finding, ...] = ()


def read_text(
    source: Source, names: Iterable[str], wishes: Mapping[str, Wish], known: Mapping[str, Reading]
) -> TypedTable:
    """Return a table whose columns ``names`` have the types that their values suggest.

    Columns in ``known`` are read as it says.
    Raises UserError if data.columns states a kind that the values do not have.
    """
    dtypes = source.table.collect_schema()
    all_texts = [name for name in names if dtypes[name] == pl.String]
    texts = [name for name in all_texts if name not in known]
    used = {name: known[name] for name in all_texts if name in known}
    if not texts:
        return TypedTable(apply_readings(source.table, used), used, {})
    table = source.table.select(map(by_name, texts))
    rows = int(collect_table(source, table.select(pl.len())).item())
    sample = collect_table(source, table.gather_every(-(-rows // SAMPLE_ROWS)))
    found = find_readings(sample, wishes, source.separator)
    tallies = _tally(source, {name: fit.numbers or fit.reading for name, fit in found.items()})
    readings, findings = used, {}
    for name, (reading, other, numbers) in found.items():
        tally = tallies.get(name, Tally())
        wish = wishes.get(name, Wish())
        if reading.type in ("number", "date") and not wish.override and not _fits(tally, wish):
            reading = Reading("text")
        elif reading.type in ("number", "date"):
            words = tuple(sorted(tally.words))
            whole = reading.type == "number" and tally.whole
            reading = reading._replace(placeholders=words, whole=whole)
            findings[name] = list(_describe(name, reading, other, tally, wish, source.is_text))
        elif numbers:
            findings[name] = [_mixed(name, tally)]
        # Other programs keep the spaces around text in a table that has types.
        if source.is_text or reading.type != "text":
            readings[name] = reading
    general = _find_unusual_texts(source, readings, tallies, texts, findings)
    plain = {name for name in readings if name in tallies and tallies[name].is_plain}
    typed = apply_readings(source.table, readings, plain)
    if source.is_text and source.folder:
        # Several queries follow, and text is converted once.
        file = source.folder / "typed.parquet"
        typed.sink_parquet(file, **QUICK)
        typed = pl.scan_parquet(file, glob=False)
    return TypedTable(typed, readings, findings, tuple(general))


def _find_unusual_texts(
    source: Source,
    readings: Mapping[str, Reading],
    tallies: Mapping[str, Tally],
    names: list[str],
    findings: dict[str, list[Finding]],
) -> list[Finding]:
    """Return findings about words for missing values; add those about blanks to ``findings``."""
    if not source.is_text:
        return []
    texts = [name for name in names if readings[name].type in ("text", "boolean")]
    counts = count_texts(source, texts)
    for name, found in counts.items():
        if about_blanks := find_blanks(source, name, found):
            findings.setdefault(name, []).extend(about_blanks)
    missing = {
        name: tally.rows - tally.read - sum(tally.words.values()) for name, tally in tallies.items()
    }
    return find_missing_words(source, missing | {n: found.missing for n, found in counts.items()})


def _fits(tally: Tally, wish: Wish) -> bool:
    """Return whether the rows beyond the sample have the kind of the sample, too."""
    return tally.read >= READABLE_SHARE * tally.present


def _tally(source: Source, readings: Mapping[str, Reading]) -> dict[str, Tally]:
    """Try readings on all rows."""
    tried = {n: r for n, r in readings.items() if r.type in ("number", "date")}
    tallies = {name: Tally() for name in tried}
    if tried:
        for _, chunk in iter_chunks(source, source.table.select(map(by_name, tried))):
            for name, reading in tried.items():
                tallies[name].add(nameless(chunk, name), reading)
    return tallies


def apply_readings(
    table: pl.LazyFrame, readings: Mapping[str, Reading], plain: Collection[str] = ()
) -> pl.LazyFrame:
    """Return a table whose text columns have the types of their readings.

    All values of the columns in ``plain`` are plain numbers, which polars reads itself.
    """
    columns = []
    for name, reading in readings.items():
        column = read_column(by_name(name), reading)
        if name in plain:
            dtype = pl.Int64 if reading.whole else pl.Float64
            column = by_name(name).cast(dtype, strict=False)
        columns.append(column.alias(name))
    return table.with_columns(columns)


def _describe(
    name: str, reading: Reading, other: str, tally: Tally, wish: Wish, is_text: bool
) -> Iterator[Finding]:
    """Yield findings about the values of a column that were not plain numbers or dates."""
    if tally.words:
        yield _unreadable_words(name, reading, tally, stated=wish.override is not None)
    if wish.override is not None and wish.override.format:
        return
    if tally.written and reading.type == "number":
        yield _written_numbers(name, reading, tally)
    elif tally.written:
        yield Finding(
            f"{tally.written} times of column {name} are not in UTC, such as "
            f"{quoted(tally.example)}",
            "they are converted to UTC",
            "write local times in the file, if the hour of the day matters",
            name,
        )
    elif reading.type == "number" and not is_text:
        yield Finding(
            f"the text of column {name} is read as numbers",
            "all of it looks like numbers",
            f"to keep text, set {state(name, 'category')}",
            name,
        )
    if other:
        chosen = reading.format.split("|")[0]
        yield Finding(
            f"the dates of column {name} fit {chosen} and {other}",
            f"they are read as {chosen}",
            f"if that is wrong, set data.columns: {{{yaml_name(name)}: {{kind: date, format: "
            f"'{other}'}}}}",
            name,
        )


def _unreadable_words(name: str, reading: Reading, tally: Tally, stated: bool) -> Finding:
    words = tally.words
    word = max(words, key=lambda w: words[w])
    listed = ", ".join(f"{quoted(w)} ({count})" for w, count in list(words.items())[:5])
    more = f": {listed}{', …' if len(words) > 5 else ''}" if len(words) > 1 else ""
    what = "as data.columns says" if stated else f"as {reading.type}s"
    return Finding(
        f"{sum(words.values())} of {tally.rows} values of column {name} cannot be read {what}, "
        f"such as {quoted(word)}",
        f"they count as missing{more}",
        "correct them, or choose another kind",
        name,
    )


def _mixed(name: str, tally: Tally) -> Finding:
    words = {word: count for word, count in tally.words.items() if word.strip()}
    word = max(words, key=lambda w: words[w])
    return Finding(
        f"{tally.read} of {tally.present} values of column {name} are numbers, the others are not, "
        f"such as {quoted(word)}",
        f"the column is text, because less than {READABLE_SHARE:.0%} are numbers",
        f"to use the numbers, and the others as missing, set {state(name, 'number')}",
        name,
    )


def _written_numbers(name: str, reading: Reading, tally: Tally) -> Finding:
    number = read(pl.Series([tally.example]), reading)[0]
    number = int(number) if number % 1 == 0 else number
    return Finding(
        f"{tally.written} of {tally.rows} values of column {name} are written like "
        f"{quoted(tally.example)}",
        f"it is read as {number}",
        f"if it means something else, state {_entry(name, reading)} or kind: category",
        name,
    )


def _entry(name: str, reading: Reading) -> str:
    other = DEFAULT_FORMAT if reading.format not in ("", DEFAULT_FORMAT) else "1.234,5"
    return f"data.columns: {{{yaml_name(name)}: {{kind: number, format: '{other}'}}}}"


# New rows for a fitted schema

_DTYPES: dict[ColumnType, pl.DataType] = {
    "number": pl.Float64(),
    "text": pl.String(),
    "boolean": pl.Boolean(),
    "date": pl.Datetime("us"),
}


def conform(
    source: Source, columns: tuple[Column, ...], where: str, has_words: bool = False
) -> tuple[pl.LazyFrame, list[Finding]]:
    """Return a table whose columns have the types they had in training, and findings.

    With ``has_words``, words such as NA count as missing, as they do in text files.
    Raises UserError for a column that is not there, of another type, or whose values mostly cannot
    be read.
    """
    expected = {column.source: column for column in columns}
    source = source._replace(table=_rename(source.table, list(expected), where))
    dtypes = source.table.collect_schema()
    readings = {
        name: reading
        for name, reading in column_readings(columns).items()
        if dtypes[name] == pl.String and not has_outer_spaces(expected[name].categories)
    }
    findings = _check_readable(source, readings, expected, where)
    others = {n: _convert(source, n, c, where) for n, c in expected.items() if n not in readings}
    table = apply_readings(source.table, readings)
    if has_words:
        texts = [name for name, reading in readings.items() if reading.type == "text"]
        table = table.with_columns(_without_words(name, expected[name]) for name in texts)
    converted = [expr.alias(name) for name, expr in others.items() if expr is not None]
    return table.with_columns(converted), findings


def has_outer_spaces(words: tuple[str, ...]) -> bool:
    """Return whether spaces around words have a meaning: the training data have them."""
    return any(word != word.strip() or not word for word in words)


def missing_words(column: Column) -> list[str]:
    """Return the words that count as missing in text of a column, unless it was trained on them."""
    return [word for word in MISSING if word not in column.categories]


def _without_words(name: str, column: Column) -> pl.Expr:
    text = by_name(name)
    return pl.when(~text.is_in(missing_words(column))).then(text).alias(name)


def _rename(table: pl.LazyFrame, names: list[str], where: str) -> pl.LazyFrame:
    """Return a table with the names of training.

    Other programs keep spaces around names, and give other names to columns without one.
    """
    given = table.collect_schema().names()
    renamed = {}
    for name in names:
        if name in given:
            continue
        alike = [g for i, g in enumerate(given) if g.strip() == name or name == _unnamed(i, g)]
        if not alike:
            raise UserError(
                f"{where}: expected a column {name}, as in training, got none."
                f"{nearest(name, given)}"
            )
        renamed[alike[0]] = name
    return table.rename(renamed) if renamed else table


def _unnamed(position: int, name: str) -> str:
    """Return the name that this package gives to a column that polars or pandas calls unnamed."""
    is_unnamed = not name.strip() or name == f"Unnamed: {position}"
    return f"column_{position + 1}" if is_unnamed else ""


def _check_readable(
    source: Source, readings: dict[str, Reading], columns: dict[str, Column], where: str
) -> list[Finding]:
    findings = []
    for name, tally in _tally(source, readings).items():
        column, unreadable = columns[name], tally.present - tally.read
        # Older runs count all unreadable values of a stated kind as missing.
        if column.type != "text" and tally.read < READABLE_SHARE * tally.present:
            assert tally.first_odd is not None
            row, value = tally.first_odd
            raise UserError(
                f"{where}: column {name}: expected values of type {column.type}, as in training, "
                f"got text, {quoted(value)} in row {row}."
            )
        if unreadable:
            assert tally.first_odd is not None
            finding = Finding(
                f"{unreadable} of {tally.rows} values of column {name} of {where} cannot be read "
                f"as {readings[name].type}s, such as {quoted(tally.first_odd[1])}",
                "they count as missing",
                "correct them",
                name,
            )
            findings.append(finding)
    return findings


def _convert(source: Source, name: str, column: Column, where: str) -> pl.Expr | None:
    """Return the expression that gives a column the type of training, None if it has it.

    Raises UserError if no conversion keeps the meaning.
    """
    dtype = source.table.collect_schema()[name]
    actual = type_of(dtype)
    if actual == column.type:
        return None
    values = by_name(name)
    indexed = source.table.select(pl.int_range(pl.len()).alias("row"), values.alias("value"))
    present = indexed.filter(pl.col("value").is_not_null())
    first = present.head(1).collect(engine="streaming")
    if not len(first):
        # A column without values fits any type.
        return pl.lit(None, _DTYPES[column.type])
    if actual == "number" and column.type == "text" and column.kind == "category":
        # Other readers take categories that look like numbers for numbers.
        whole = values.cast(pl.Int64, strict=False)
        is_whole = whole.cast(pl.Float64) == values.cast(pl.Float64)
        text = pl.when(is_whole).then(whole.cast(pl.String)).otherwise(values.cast(pl.String))
        is_known = text.is_in(list(column.categories)).any()
        if source.table.select(is_known).collect(engine="streaming").item():
            return text
    raise UserError(
        f"{where}: column {name}: expected values of type {column.type}, as in training, got "
        f"{actual or dtype}, {quoted(first['value'][0])} in row {first['row'][0]}."
    )
