"""Tables in files: text, Parquet, JSON lines and Excel, scanned without loading them whole."""

import csv
import glob
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from polars import selectors
from polars.exceptions import PolarsError

from proj.data.tabular.cache import DISK_FULL
from proj.data.tabular.dialect import Dialect, find_dialect, free_name, plain_copy, read_head
from proj.data.tabular.memory import check_memory
from proj.data.tabular.numbers import parse_numbers
from proj.errors import UserError, nearest, quoted
from proj.schema import Finding

TEXT, JSON, EXCEL = (".csv", ".tsv", ".txt"), (".json", ".jsonl", ".ndjson"), (".xlsx", ".xls")
SUFFIXES = (*TEXT, ".parquet", *JSON, *EXCEL)
COMPRESSED = (".gz", ".bz2", ".xz")

# Rows per chunk of a streamed table, and its values.
CHUNK_ROWS, CHUNK_VALUES = 500_000, 50_000_000

# Memory for each row of a table: its target, its number, its split, and copies of them while the
# rows are split. Other columns are streamed.
ROW_BYTES = 80

UNNAMED = "__UNNAMED__"  # Begins the name that fastexcel gives to a column without one.

# Of copies that are read a few times. Better compression would take more time than it saves.
QUICK: dict[str, Any] = {"compression": "lz4", "statistics": False, "engine": "streaming"}

# Words for missing values in the text files of other programs, beside empty fields.
MISSING = ("NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "?")


class Source(NamedTuple):
    """A table for several queries.

    Attributes:
        file: the first file, for messages.
        table: the rows.
        separator: of a text file, whose columns all are text; otherwise empty.
        findings: findings about the files as a whole.
        folder: a folder for copies that exists as long as the table.
        with_words: the table of a text file with the words that ``table`` has as missing values.
    """

    file: Path
    table: pl.LazyFrame
    separator: str = ""
    findings: tuple[Finding, ...] = ()
    folder: Path | None = None
    with_words: pl.LazyFrame | None = None

    @property
    def is_text(self) -> bool:
        return bool(self.separator)


def by_name(name: str) -> pl.Expr:
    """Return the expression of a column. ``pl.col`` would read ``*`` and ``^…$`` as patterns."""
    return selectors.by_name(name).as_expr()


def nameless(frame: pl.DataFrame, name: str) -> pl.Series:
    """Return a column of a frame without its name, which many methods of series read as well."""
    return frame.get_column(name).alias("")


def suffix_of(path: Path) -> str:
    """Return the ending of a table's name in lower case, without that of a compressed file."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in COMPRESSED and suffixes[-2] in TEXT:
        return suffixes[-2]
    return suffixes[-1] if suffixes else ""


def list_files(path: str, option: str) -> list[Path]:
    """Return the file, or the files of a glob in the order of their names.

    A file with the characters of a glob in its name is that file.
    """
    pattern = Path(path).expanduser()
    files = [pattern]
    if not pattern.exists() and glob.has_magic(pattern.name):
        files = sorted(pattern.parent.glob(pattern.name))
    for file in files:
        if suffix_of(file) not in SUFFIXES:
            raise UserError(
                f"{option}: expected a table that ends in {', '.join(SUFFIXES)}, got {file}."
            )
        if not file.is_file():
            exists = file.parent.is_dir()
            siblings = file.parent.iterdir() if exists else ()
            tables = [str(p) for p in siblings if suffix_of(p) in SUFFIXES]
            raise UserError(f"{option}: no file {file}.{nearest(str(file), tables)}")
    if not files:
        raise UserError(
            f"{option}: expected a file that matches {path}, got none; correct the path."
        )
    if len({_kind(file) for file in files}) > 1:
        names = ", ".join(file.name for file in files[:5])
        raise UserError(f"{option}: expected files of one kind, got {names}.")
    return files


def _kind(file: Path) -> str:
    return next((k[0] for k in (TEXT, JSON, EXCEL) if suffix_of(file) in k), ".parquet")


def read_names(files: list[Path]) -> list[str]:
    """Return the names of the columns."""
    if _kind(files[0]) == TEXT[0]:
        tab_separated = suffix_of(files[0]) == ".tsv"
        return list(find_dialect(read_head(files[0]), str(files[0]), tab_separated).names)
    with open_table(files) as source:
        return source.table.collect_schema().names()


@contextmanager
def open_table(files: list[Path], folder: Path | None = None) -> Iterator[Source]:
    """Yield the table of ``files``, with missing numbers as null.

    All columns of text files are text. Files that are not in Parquet are converted once, in a
    folder in ``folder`` that exists as long as the context. Raises UserError for a file that is
    not a table: empty, with lines of different lengths, not UTF-8, or with equal column names.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        working = Path(name)
        try:
            source = _OPENERS[_kind(files[0])](files, working)
            rows = source.table.select(pl.len()).collect(engine="streaming").item()
            names = source.table.collect_schema().names()
        except (PolarsError, OSError) as error:
            raise UserError(_cause(files[0], error)) from error
        if not names or not rows:
            got = "a header only" if names else "an empty file"
            raise UserError(f"{files[0]}: expected rows of data, got {got}.")
        check_memory(rows * ROW_BYTES, str(files[0]))
        yield source._replace(table=nan_to_null(source.table), folder=working)


def _open_parquet(files: list[Path], folder: Path) -> Source:
    # With glob, polars takes brackets in a name for a pattern.
    return Source(files[0], pl.scan_parquet(files, glob=False))


def _open_text(files: list[Path], folder: Path) -> Source:
    """Write text files as one Parquet file of text in ``folder``, and scan it."""
    tables: list[pl.LazyFrame] = []
    with_words: list[pl.LazyFrame] = []
    findings: list[Finding] = []
    first: Dialect | None = None
    for file in files:
        try:
            plain, dialect = plain_copy(file, folder, suffix_of(file) == ".tsv")
        except UnicodeDecodeError as error:
            raise UserError(_cause(file, error)) from error
        first = first or dialect
        if dialect.names != first.names:
            raise UserError(
                f"{file}: expected the columns of {files[0].name}, {', '.join(first.names)}, got "
                f"{', '.join(dialect.names)}."
            )
        parquet = folder / f"{len(tables)}.parquet"
        try:
            _scan_text(plain, dialect).sink_parquet(parquet, **QUICK)
        except PolarsError as error:
            _check_encoding(plain, file)
            _check_fields(plain, file, dialect)
            raise UserError(_cause(file, error)) from error
        table = pl.scan_parquet(parquet, glob=False)
        _check_last_column(table, plain, file, dialect)
        words = _scan_text(plain, dialect, ())
        if repeated := _count_repeated_headers(table, dialect):
            is_row = ~_is_header(dialect)
            table, words = table.filter(is_row), words.filter(is_row)
            findings.append(_repeated_header_finding(file, repeated))
        tables.append(table)
        with_words.append(words)
        findings += _find_comments(plain, file, dialect)
        if dialect.row_names:
            findings.append(_row_names_finding(file, dialect))
        if len(tables) == 1:
            findings += _find_missing_header(file, dialect)
    assert first is not None
    findings += _find_unnamed(files[0], first.unnamed)
    words = pl.concat(with_words)
    return Source(files[0], pl.concat(tables), first.separator, tuple(findings), with_words=words)


def _scan_text(file: Path, dialect: Dialect, missing: Sequence[str] = MISSING) -> pl.LazyFrame:
    names = list(dialect.names)
    table = pl.scan_csv(
        file,
        separator=dialect.separator,
        skip_lines=dialect.skipped,
        comment_prefix=dialect.comment,
        null_values=list(missing),
        infer_schema=False,
        with_column_names=lambda _: names,
        glob=False,
    )
    # The csv module skips blank lines. polars reads them as rows of missing values.
    is_row = ~pl.all_horizontal(pl.all().is_null())
    return table.filter(is_row) if dialect.blank_lines and len(names) > 1 else table


def _open_json(files: list[Path], folder: Path) -> Source:
    """Read objects on lines, or one list of objects."""
    tables = []
    for number, file in enumerate(files):
        with file.open("rb") as start:
            is_list = start.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        if is_list:
            try:
                rows = json.loads(file.read_text(encoding="utf-8-sig"))
                table = pl.DataFrame(rows, infer_schema_length=None)
            except (ValueError, TypeError) as error:
                raise UserError(_cause(file, error)) from error
        else:
            table = pl.read_ndjson(file, infer_schema_length=None)
        table.write_parquet(folder / f"{number}.parquet")
        tables.append(pl.scan_parquet(folder / f"{number}.parquet", glob=False))
    return Source(files[0], pl.concat(tables))


def _open_excel(files: list[Path], folder: Path) -> Source:
    """Read the first sheet of each workbook."""
    # Importing takes long, and few tables are workbooks.
    import fastexcel

    tables: list[pl.LazyFrame] = []
    findings: list[Finding] = []
    for number, file in enumerate(files):
        try:
            book = fastexcel.read_excel(file)
            sheet = book.load_sheet(0, schema_sample_rows=None).to_polars()
        except fastexcel.FastExcelError as error:
            raise UserError(_cause(file, error)) from error
        names = [
            free_name(i, sheet.columns) if name.startswith(UNNAMED) else name.strip()
            for i, name in enumerate(sheet.columns)
        ]
        if len(set(names)) < len(names):
            raise UserError(
                f"{file}: expected different names for all columns, got {', '.join(names)}; rename "
                "the equal ones."
            )
        if number == 0:
            unnamed = [
                n for n, g in zip(names, sheet.columns, strict=True) if g.startswith(UNNAMED)
            ]
            findings += _find_unnamed(file, unnamed)
        sheet.columns = names
        sheet.write_parquet(folder / f"{number}.parquet")
        tables.append(pl.scan_parquet(folder / f"{number}.parquet", glob=False))
        if others := book.sheet_names[1:]:
            finding = Finding(
                f"{file.name} has {len(book.sheet_names)} sheets",
                f"only the first, {book.sheet_names[0]!r}, is read, not {others[0]!r}",
                "save the sheet that you need as a file of its own, if it is another one",
            )
            findings.append(finding)
    return Source(files[0], pl.concat(tables), "", tuple(findings))


_OPENERS = {
    TEXT[0]: _open_text,
    ".parquet": _open_parquet,
    JSON[0]: _open_json,
    EXCEL[0]: _open_excel,
}


def collect_table(source: Source, table: pl.LazyFrame) -> pl.DataFrame:
    """Return the result of a query on ``source``, computed by streaming."""
    try:
        return table.collect(engine="streaming")
    except PolarsError as error:
        raise UserError(_cause(source.file, error)) from error


def iter_chunks(source: Source, table: pl.LazyFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    """Yield the table in chunks, with the number of each chunk's first row."""
    # polars' own iterator reads ahead without a limit, and a large table would fill the memory.
    start, columns = 0, max(1, len(table.collect_schema()))
    size = max(1, min(CHUNK_ROWS, CHUNK_VALUES // columns))
    while len(chunk := collect_table(source, table.slice(start, size))):
        yield start, chunk
        start += len(chunk)


def nan_to_null(table: pl.LazyFrame) -> pl.LazyFrame:
    """Replace NaN, which other programs write for a missing number, by null."""
    return table.with_columns(pl.col(pl.Float32, pl.Float64).fill_nan(None))


def check_names(names: list[str], wanted: list[str], option: str, where: str) -> None:
    """Raise UserError unless all ``wanted`` columns are in ``names``."""
    for name in wanted:
        if name not in names:
            listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
            raise UserError(
                f"{option}: {where} has no column {quoted(name)}.{nearest(name, names)} It has "
                f"{listed}."
            )


def _check_last_column(table: pl.LazyFrame, plain: Path, file: Path, dialect: Dialect) -> None:
    """Raise UserError if a line is too short: it ends in missing values."""
    last = pl.nth(-1)
    if len(dialect.names) > 1 and table.select(last.null_count()).collect().item():
        _check_fields(plain, file, dialect)


def _check_fields(plain: Path, file: Path, dialect: Dialect) -> None:
    """Raise UserError for the first line with another number of fields. Blank lines are skipped."""
    fields = len(dialect.names)
    with plain.open(encoding="utf-8-sig", newline="") as source:
        lines: Iterable[str] = islice(source, dialect.skipped, None)
        if comment := dialect.comment:
            lines = (line for line in lines if not line.startswith(comment))
        reader = csv.reader(lines, delimiter=dialect.separator)
        for row in reader:
            if row and len(row) != fields:
                raise UserError(
                    f"{file}: expected {fields} fields per line, as in the header, got "
                    f"{len(row)} in line {reader.line_num + dialect.skipped}; correct the line, or "
                    "put quotes around its text."
                )


def _check_encoding(plain: Path, file: Path) -> None:
    """Raise UserError for the first byte that is not UTF-8."""
    with plain.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file}: expected text in UTF-8, got the byte 0x{line[error.start]:02x} in "
                    f"line {number}; convert it, for example with "
                    f"`iconv -f latin1 -t utf-8 {file.name}`."
                ) from error


def _find_comments(plain: Path, file: Path, dialect: Dialect) -> list[Finding]:
    """Return a finding about lines between the rows that are left out as comments."""
    if not (comment := dialect.comment):
        return []
    with plain.open(encoding="utf-8-sig") as source:
        lines = islice(source, dialect.skipped, None)
        comments = [line.strip() for line in lines if line.startswith(comment)]
    if not comments:
        return []
    lines_begin = f"{len(comments)} lines of {file.name} begin"
    if len(comments) == 1:
        lines_begin = f"1 line of {file.name} begins"
    return [
        Finding(
            f"{lines_begin} with {comment}, such as {comments[0]!r}",
            "they are left out as comments",
            "put quotes around the first field of each, if they are rows",
        )
    ]


def _row_names_finding(file: Path, dialect: Dialect) -> Finding:
    return Finding(
        f"the header of {file.name} has one field less than the lines below it",
        f"the first column is read as row names, as R writes them, and called {dialect.names[0]}",
        "name all columns in the header, if that is wrong",
    )


def _find_missing_header(file: Path, dialect: Dialect) -> list[Finding]:
    """Return a finding about names that are numbers, as in a file without a header.

    Names such as the years of a wide table ascend.
    """
    numbers = parse_numbers(pl.Series(dialect.names, dtype=pl.String)).drop_nulls()
    ascend = bool((numbers.diff().drop_nulls() > 0).all())
    if len(numbers) < 3 or len(numbers) < len(dialect.names) / 2 or ascend:
        return []
    names = ", ".join(dialect.names[:3])
    return [
        Finding(
            f"the first line of {file.name} may be a row: it begins with {names}",
            "it is read as the names of the columns, not as a row",
            "write a line with names above it, if the file has none",
        )
    ]


def _is_header(dialect: Dialect) -> pl.Expr:
    """Return the expression of rows that repeat the names of all columns."""
    fields = [(by_name(name).str.strip_chars(), name) for name in dialect.names]
    return pl.all_horizontal(
        value.fill_null("") == "" if name in dialect.unnamed else (value == name).fill_null(False)
        for value, name in fields
    )


def _count_repeated_headers(table: pl.LazyFrame, dialect: Dialect) -> int:
    """Return how often the header is among the rows, as in files that were put together.

    A single column may have its name as a value.
    """
    named = [name for name in dialect.names if name not in dialect.unnamed]
    if len(named) < 2:
        return 0
    # Of most tables, reading one column shows that there is none.
    may_be = by_name(named[-1]).str.strip_chars() == named[-1]
    if not table.select(may_be.any()).collect(engine="streaming").item():
        return 0
    return int(table.select(_is_header(dialect).sum()).collect(engine="streaming").item())


def _repeated_header_finding(file: Path, repeated: int) -> Finding:
    rows = "1 row repeats" if repeated == 1 else f"{repeated} rows repeat"
    return Finding(
        f"{rows} the header of {file.name}",
        "they are left out" if repeated > 1 else "it is left out",
        "delete such lines from the file",
    )


def _find_unnamed(file: Path, names: Sequence[str]) -> list[Finding]:
    """Return a finding about columns without a name, which are called ``names``."""
    if not names:
        return []
    noun, verb = ("1 column", "has") if len(names) == 1 else (f"{len(names)} columns", "have")
    what = f"{noun} of {file.name} {verb} no name"
    effect = f"the name is {', '.join(names[:5])}{', …' * (len(names) > 5)}"
    return [Finding(what, effect, "write names in the first line, if the columns are used")]


def _cause(file: Path, error: Exception) -> str:
    """Return a message with the cause of a failed read; raise OSError if the disk is full."""
    full = re.search(r"os error (\d+)", str(error))
    if full and int(full[1]) in DISK_FULL:
        raise OSError(int(full[1]), os.strerror(int(full[1]))) from error
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        raise error
    return f"{file}: cannot be read: {' '.join(str(error).split())[:300]}."
