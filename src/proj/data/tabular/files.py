"""Tables in files: CSV, TSV and Parquet, scanned without reading them whole."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from proj.errors import UserError, nearest

ENDINGS = (".csv", ".tsv", ".txt", ".parquet")

HEAD = 10_000  # rows that types are inferred from at first

# What stands for a missing value in text files, beside an empty field: the words that other programs write.
MISSING = ("NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "?")


def files_of(path: str, option: str) -> list[Path]:
    """The file, or the files of a glob, in the order of their names."""
    pattern = Path(path)
    found = sorted(pattern.parent.glob(pattern.name)) if "*" in pattern.name else [pattern]
    for file in found:
        if file.suffix not in ENDINGS:
            raise UserError(
                f"{option}: expected a table that ends in {', '.join(ENDINGS)}, got {file}."
            )
        if not file.is_file():
            there = (
                [str(p) for p in file.parent.glob(f"*{file.suffix}")]
                if file.parent.is_dir()
                else []
            )
            raise UserError(f"{option}: no file {file}.{nearest(str(file), there)}")
    if not found:
        raise UserError(f"{option}: no file matches {path}.")
    if len({file.suffix == ".parquet" for file in found}) > 1:
        raise UserError(
            f"{option}: expected files of one kind, got {', '.join(file.name for file in found[:5])}."
        )
    return found


def scan(files: list[Path], text: Iterable[str] = (), whole: bool = False) -> pl.LazyFrame:
    """The table of all ``files``, lazily. In text files, types are inferred from the first rows (or the ``whole``);
    ``text`` columns stay text.
    """
    if files[0].suffix == ".parquet":
        return pl.scan_parquet(files)
    header, separator = _header(files[0])
    for file in files[1:]:
        if (other := _header(file)[0]) != header:
            raise UserError(
                f"{file}: expected the columns of {files[0].name}, {', '.join(header)}, got {', '.join(other)}."
            )
    types = {name: pl.String for name in text if name in header}
    try:
        return pl.scan_csv(
            files,
            separator=separator,
            null_values=list(MISSING),
            try_parse_dates=True,
            infer_schema_length=None if whole else HEAD,
            schema_overrides=types,
        )
    except PolarsError as error:
        raise _explained(files, error) from error


def parsed(files: list[Path], folder: Path, text: Iterable[str] = ()) -> pl.LazyFrame:
    """The same, for several queries: text files are parsed once, into a Parquet file in ``folder``.

    Raises UserError where a file is no table: empty, ragged, not UTF-8, or with two columns of one name.
    """
    try:
        if files[0].suffix == ".parquet":
            table = scan(files)
        else:
            table = _stored(files, folder / f"{len(list(folder.iterdir()))}.parquet", list(text))
        names = table.collect_schema().names()
        rows = table.select(pl.len()).collect(engine="streaming").item()
    except (PolarsError, OSError) as error:
        raise _explained(files, error) from error
    if not names or not rows:
        raise UserError(
            f"{files[0]}: expected rows of data, got {'a header alone' if names else 'an empty file'}."
        )
    if (
        files[0].suffix != ".parquet"
        and len(names) > 1
        and read(files, table.select(pl.col(names[-1]).null_count())).item()
    ):
        _find_ragged(
            files, _header(files[0])[1], len(names)
        )  # a line with too few fields ends in missing values
    return without_nan(table)


def without_nan(table: pl.LazyFrame) -> pl.LazyFrame:
    """Not-a-number is how other programs write a missing number."""
    return table.with_columns(pl.col(pl.Float32, pl.Float64).fill_nan(None))


def _stored(files: list[Path], file: Path, text: list[str]) -> pl.LazyFrame:
    """Text files as a Parquet file. Where the first rows do not tell a column's type, all rows are asked."""
    try:
        scan(files, text).sink_parquet(file, engine="streaming")
        table = pl.scan_parquet(file)
        unknown = table.head(HEAD).select(pl.col(pl.String).exclude(text).is_null().all()).collect()
        if not any(unknown.row(0)):
            return table
    except (
        PolarsError
    ):  # a later row is not of the first rows' type, or the file is no table: then it fails again
        pass
    scan(files, text, whole=True).sink_parquet(file, engine="streaming")
    return pl.scan_parquet(file)


def from_columns(rows: Any) -> pl.DataFrame:
    """A pandas frame, or anything else that gives columns by name, as a polars frame; not-a-number is missing."""
    if hasattr(rows, "notna"):  # pandas, whose own missing values compare with nothing
        rows = rows.astype(object).where(rows.notna(), None)
    try:
        columns = {str(name): list(rows[name]) for name in rows}
    except (TypeError, KeyError, IndexError) as error:
        raise UserError(
            f"expected rows as a polars or pandas frame, or a dict of columns, got {type(rows).__name__}."
        ) from error
    return pl.DataFrame(
        {name: [v if v == v else None for v in values] for name, values in columns.items()},
        strict=False,
    )


def read(files: list[Path], table: pl.LazyFrame) -> pl.DataFrame:
    """The result of a query on ``files``, computed a part at a time."""
    try:
        return table.collect(engine="streaming")
    except PolarsError as error:
        raise _explained(files, error) from error


def _header(file: Path) -> tuple[list[str], str]:
    """The names of the columns, and what separates them: the character of ``, ; tab |`` that is there most."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            first = lines.readline()
            separator = "\t" if file.suffix == ".tsv" else max(",;\t|", key=first.count)
            lines.seek(0)
            names = next(csv.reader(lines, delimiter=separator), [])
    except UnicodeDecodeError as error:
        raise UserError(_not_utf8(file)) from error
    if not names:
        raise UserError(f"{file}: expected a header and rows of data, got an empty file.")
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{file}: expected a name of its own for each column, got {name!r} {names.count(name)} times; "
                "rename all but one."
            )
    return names, separator


def _explained(files: list[Path], error: Exception) -> UserError:
    if files[0].suffix != ".parquet":
        for file in files:
            if wrong := _not_utf8(file):
                return UserError(wrong)
        _find_ragged(files, _header(files[0])[1], len(_header(files[0])[0]))
    return UserError(f"{files[0]}: cannot be read: {' '.join(str(error).split())[:300]}.")


def _find_ragged(files: list[Path], separator: str, fields: int) -> None:
    """Raise UserError for the first line with another number of fields; blank lines do not count."""
    for file in files:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter=separator)
            for row in reader:
                if row and len(row) != fields:
                    raise UserError(
                        f"{file}: expected {fields} fields a line, as in the header, got {len(row)} in line "
                        f"{reader.line_num}; correct the line, or put quotes around its text."
                    )


def _not_utf8(file: Path) -> str:
    """What to say of a file that is not UTF-8; empty for one that is."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return (
                    f"{file}: expected text in UTF-8, got the byte 0x{line[error.start]:02x} in line {number}; convert "
                    f"it, for example with `iconv -f latin1 -t utf-8 {file.name}`."
                )
    return ""
