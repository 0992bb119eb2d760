"""Tables in files: CSV, TSV and Parquet, scanned without loading them whole."""

import csv
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import polars as pl
from polars import selectors
from polars.exceptions import PolarsError

from proj.data.memory import check_memory
from proj.data.tabular.cache import DISK_FULL
from proj.errors import UserError, nearest

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")

# Rows that the types of a text file are inferred from at first.
INFERENCE_ROWS = 10_000

# Rows per chunk of a streamed table, and its values.
CHUNK_ROWS, CHUNK_VALUES = 500_000, 50_000_000

# Memory for each row of a table: its target, its number, its split, and copies of them while the
# rows are split. Other columns are streamed.
ROW_BYTES = 80

# Characters that are searched for the end of a quoted name.
MAX_HEADER = 100_000

# Words for missing values in the text files of other programs, beside empty fields.
MISSING = ("NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "?")


def by_name(name: str) -> pl.Expr:
    """Return the expression of a column. ``pl.col`` would read ``*`` and ``^…$`` as patterns."""
    return selectors.by_name(name).as_expr()


def nameless(frame: pl.DataFrame, name: str) -> pl.Series:
    """Return a column of a frame without its name, which many methods of series read as well."""
    return frame.get_column(name).alias("")


def list_files(path: str, option: str) -> list[Path]:
    """Return the file, or the files of a glob in the order of their names."""
    pattern = Path(path)
    files = sorted(pattern.parent.glob(pattern.name)) if "*" in pattern.name else [pattern]
    for file in files:
        if file.suffix not in SUFFIXES:
            raise UserError(
                f"{option}: expected a table that ends in {', '.join(SUFFIXES)}, got {file}."
            )
        if not file.is_file():
            exists = file.parent.is_dir()
            siblings = [str(p) for p in file.parent.glob(f"*{file.suffix}")] if exists else []
            raise UserError(f"{option}: no file {file}.{nearest(str(file), siblings)}")
    if not files:
        raise UserError(
            f"{option}: expected a file that matches {path}, got none; correct the path."
        )
    if len({file.suffix == ".parquet" for file in files}) > 1:
        names = ", ".join(file.name for file in files[:5])
        raise UserError(f"{option}: expected files of one kind, got {names}.")
    return files


def scan(files: list[Path], text: Iterable[str] = (), infer_from_all: bool = False) -> pl.LazyFrame:
    """Return the table of all ``files`` as a lazy frame.

    In text files, types are inferred from the first rows, or from all rows with
    ``infer_from_all``. The columns in ``text`` stay text.
    """
    if files[0].suffix == ".parquet":
        return pl.scan_parquet(files)
    header, separator = _read_header(files[0])
    for file in files[1:]:
        if (other := _read_header(file)[0]) != header:
            raise UserError(
                f"{file}: expected the columns of {files[0].name}, {', '.join(header)}, got "
                f"{', '.join(other)}."
            )
    try:
        return pl.scan_csv(
            files,
            separator=separator,
            null_values=list(MISSING),
            try_parse_dates=True,
            infer_schema_length=None if infer_from_all else INFERENCE_ROWS,
            # polars keeps the doubled quotes of a name.
            with_column_names=lambda _: header,
            schema_overrides={name: pl.String for name in text if name in header},
        )
    except PolarsError as error:
        raise _to_user_error(files, error) from error


def open_table(files: list[Path], folder: Path, text: Iterable[str] = ()) -> pl.LazyFrame:
    """Return the table of ``files`` for several queries, with missing numbers as null.

    Text files are parsed once, into a Parquet file in ``folder``. Raises UserError for a file that
    is not a table: empty, with lines of different lengths, not UTF-8, or with equal column names.
    """
    is_text = files[0].suffix != ".parquet"
    try:
        table = _parse_once(files, folder, list(text)) if is_text else scan(files)
        names = table.collect_schema().names()
        rows = table.select(pl.len()).collect(engine="streaming").item()
    except (PolarsError, OSError) as error:
        raise _to_user_error(files, error) from error
    if not names or not rows:
        got = "a header only" if names else "an empty file"
        raise UserError(f"{files[0]}: expected rows of data, got {got}.")
    check_memory(rows * ROW_BYTES, str(files[0]))
    last = by_name(names[-1])
    # A line with too few fields ends in missing values. Without any, no line needs to be checked.
    if is_text and len(names) > 1 and collect(files, table.select(last.null_count())).item():
        _check_fields(files, _read_header(files[0])[1], len(names))
    return nan_to_null(table)


def collect(files: list[Path], table: pl.LazyFrame) -> pl.DataFrame:
    """Return the result of a query on ``files``, computed by streaming."""
    try:
        return table.collect(engine="streaming")
    except PolarsError as error:
        raise _to_user_error(files, error) from error


def iter_chunks(files: list[Path], table: pl.LazyFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    """Yield the table in chunks, with the number of each chunk's first row."""
    # polars' own iterator reads ahead without a limit, and a large table would fill the memory.
    start, columns = 0, max(1, len(table.collect_schema()))
    size = max(1, min(CHUNK_ROWS, CHUNK_VALUES // columns))
    while len(chunk := collect(files, table.slice(start, size))):
        yield start, chunk
        start += len(chunk)


def nan_to_null(table: pl.LazyFrame) -> pl.LazyFrame:
    """Replace NaN, which other programs write for a missing number, by null."""
    return table.with_columns(pl.col(pl.Float32, pl.Float64).fill_nan(None))


def to_frame(rows: Any) -> pl.DataFrame:
    """Return a polars or pandas frame, or a dict of columns, as a polars frame without NaN."""
    if isinstance(rows, pl.DataFrame):
        return nan_to_null(rows.lazy()).collect()
    if hasattr(rows, "notna"):
        # The missing values of pandas compare as neither equal nor unequal.
        rows = rows.astype(object).where(rows.notna(), None)
    try:
        columns = {str(name): list(rows[name]) for name in rows}
    except (TypeError, KeyError, IndexError) as error:
        raise UserError(
            "expected rows as a polars or pandas frame, or a dict of columns, got "
            f"{type(rows).__name__}."
        ) from error
    without_nan = {
        name: [v if v == v else None for v in column] for name, column in columns.items()
    }
    return pl.DataFrame(without_nan, strict=False)


def check_names(names: list[str], wanted: list[str], option: str, where: str) -> None:
    """Raise UserError unless all ``wanted`` columns are in ``names``."""
    for name in wanted:
        if name not in names:
            listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
            raise UserError(
                f"{option}: {where} has no column {name!r}.{nearest(name, names)} It has {listed}."
            )


def _parse_once(files: list[Path], folder: Path, text: list[str]) -> pl.LazyFrame:
    """Write text files as one Parquet file in ``folder``, and return it."""
    parquet = folder / f"{len(list(folder.iterdir()))}.parquet"
    try:
        scan(files, text).sink_parquet(parquet, engine="streaming")
        table = pl.scan_parquet(parquet)
        dtypes = table.collect_schema().items()
        inferred = [name for name, dtype in dtypes if dtype == pl.String and name not in text]
        head = table.head(INFERENCE_ROWS).select(map(by_name, inferred)).collect()
        if not any(column.null_count() == len(column) for column in head):
            return table
    except PolarsError:
        # Either a later row has another type than the first rows, which the second attempt handles,
        # or the file is not a table, which fails again below.
        pass
    scan(files, text, infer_from_all=True).sink_parquet(parquet, engine="streaming")
    return pl.scan_parquet(parquet)


def _read_header(file: Path) -> tuple[list[str], str]:
    """Return the column names, and the separator: the most frequent of ``, ; tab |``."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            separator = "\t" if file.suffix == ".tsv" else _most_frequent_separator(lines)
            lines.seek(0)
            names = next(csv.reader(lines, delimiter=separator), [])
    except UnicodeDecodeError as error:
        raise UserError(_find_invalid_utf8(file)) from error
    if not names:
        raise UserError(f"{file}: expected a header and rows of data, got an empty file.")
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{file}: expected different names for all columns, got {name!r} "
                f"{names.count(name)} times; rename all but one."
            )
    return names, separator


def _most_frequent_separator(lines: TextIO) -> str:
    """Return the separator in the first line; a quoted name may hold others, and line breaks."""
    header = first_line = lines.readline()
    while header.count('"') % 2 and len(header) < MAX_HEADER and (line := lines.readline()):
        header += line
    # An odd quote is part of a name.
    unquoted = first_line if header.count('"') % 2 else re.sub('"[^"]*"', "", header)
    return max(",;\t|", key=unquoted.count)


def _to_user_error(files: list[Path], error: Exception) -> UserError:
    """Return a UserError with the cause of a failed read; raise OSError if the disk is full."""
    full = re.search(r"os error (\d+)", str(error))
    if full and int(full[1]) in DISK_FULL:
        raise OSError(int(full[1]), os.strerror(int(full[1]))) from error
    if files[0].suffix != ".parquet":
        for file in files:
            if message := _find_invalid_utf8(file):
                return UserError(message)
        header, separator = _read_header(files[0])
        _check_fields(files, separator, len(header))
    return UserError(f"{files[0]}: cannot be read: {' '.join(str(error).split())[:300]}.")


def _check_fields(files: list[Path], separator: str, fields: int) -> None:
    """Raise UserError for the first line with another number of fields. Blank lines are skipped."""
    for file in files:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter=separator)
            for row in reader:
                if row and len(row) != fields:
                    raise UserError(
                        f"{file}: expected {fields} fields per line, as in the header, got "
                        f"{len(row)} in line {reader.line_num}; correct the line, or put quotes "
                        "around its text."
                    )


def _find_invalid_utf8(file: Path) -> str:
    """Return a message about the first byte that is not UTF-8; empty if there is none."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return (
                    f"{file}: expected text in UTF-8, got the byte 0x{line[error.start]:02x} in "
                    f"line {number}; convert it, for example with "
                    f"`iconv -f latin1 -t utf-8 {file.name}`."
                )
    return ""
