"""Text files as other programs write them: encoding, compression, separator, quotes, comments."""

import bz2
import codecs
import csv
import gzip
import io
import lzma
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from proj.errors import UserError, quoted

SEPARATORS = ",;\t|"

# The first bytes of a compressed file, and the function that opens it.
_COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
# Longer marks first: UTF-32 begins like UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

# Lines that the separator is found from, and the longest that they may be together.
HEAD_LINES, HEAD_BYTES = 500, 1_000_000

# Bytes of a file that are read at once.
CHUNK_BYTES = 16_000_000

# Spaces separate columns if at least this share of lines has as many as the header.
_SPACE_SHARE = 0.95


class Dialect(NamedTuple):
    """How a text file is written, after ``plain_copy``.

    Attributes:
        names: names of the columns; ``column_3`` for a third one without a name.
        separator: the character between fields.
        skipped: lines before the header: ``sep=;`` and comments.
        comment: the first character of lines to leave out, or None.
        blank_lines: whether there are empty lines between the rows.
        row_names: whether the header does not name the first column, as R writes row names.
        unnamed: names that are not in the file.
    """

    names: tuple[str, ...]
    separator: str
    skipped: int
    comment: str | None
    blank_lines: bool
    row_names: bool = False
    unnamed: tuple[str, ...] = ()


def plain_copy(file: Path, folder: Path, tab_separated: bool) -> tuple[Path, Dialect]:
    """Return a text file, or a copy in ``folder`` that polars can read, and its dialect.

    A copy is made of files that are compressed, not in UTF-8, with single carriage returns as line
    ends, separated by spaces, with row names, or with quotes that polars reads in another way than
    Python's csv module. Raises UserError if the file is empty or two columns have one name.
    """
    plain = file
    head = read_head(file)
    if _needs_decoding(file):
        plain = folder / f"{len(list(folder.iterdir()))}.csv"
        with _open_text(file) as source, plain.open("w", encoding="utf-8", newline="") as copy:
            while text := source.read(CHUNK_BYTES):
                copy.write(text)
    dialect = find_dialect(head, str(file), tab_separated)
    blank_lines, is_readable = _scan_bytes(plain, dialect.separator)
    if dialect.separator == " " or dialect.row_names or not is_readable:
        plain = _rewrite(plain, folder, dialect, head)
        dialect = dialect._replace(separator=",", skipped=0, comment=None)
        blank_lines = False
    return plain, dialect._replace(blank_lines=blank_lines)


def read_head(file: Path) -> list[str]:
    """Return the first lines of a text file, decoded."""
    # Bytes that are not text get a message when the whole file is read.
    with _open_text(file, errors="replace") as source:
        lines = list(islice(io.StringIO(source.read(HEAD_BYTES), newline=""), HEAD_LINES + 1))
    # The last line may be cut.
    return lines[:-1] if len(lines) > 1 and not lines[-1].endswith(("\n", "\r")) else lines


def find_dialect(lines: list[str], where: str, tab_separated: bool = False) -> Dialect:
    """Return the dialect of a file's first lines.

    The separator is the one that gives most lines as many fields as the header has.
    """
    skipped, separator = 0, "\t" if tab_separated else ""
    if lines and lines[0].lower().startswith("sep=") and len(lines[0].strip("\r\n")) == 5:
        skipped, separator = 1, lines[0][4]
    comments = 0
    while skipped + comments < len(lines) and _is_skipped(lines[skipped + comments]):
        comments += 1
    rest = lines[skipped + comments :]
    if comments and (header := _hash_header(lines[skipped + comments - 1], rest, separator)):
        comments -= 1
        rest = [header, *rest]
    has_comments = any(line.startswith("#") for line in lines[skipped : skipped + comments])
    separator = separator or _find_separator(rest)
    records = [row for row in _records(rest, separator) if row]
    names = records[0] if records else []
    if not names:
        raise UserError(f"{where}: expected a header and rows of data, got an empty file.")
    if row_names := _have_row_names(records):
        names = ["", *names]
    named = _name_all(names, where)
    return Dialect(
        tuple(named),
        separator,
        skipped + comments,
        "#" if has_comments and _are_comments(rest, separator, len(names)) else None,
        blank_lines=False,
        row_names=row_names,
        # A finding of its own tells of row names.
        unnamed=tuple(n for n, given in zip(named, names, strict=True) if not given.strip())[
            row_names:
        ],
    )


def _have_row_names(records: list[list[str]]) -> bool:
    """Return whether all lines begin with a name of the row, for which the header has no field.

    R writes tables like this. Its row names are unique. A separator at the end of each line would
    be an empty last field.
    """
    if len(records) < 2 or len(records[0]) < 2:
        return False
    header, *rows = records
    first = {row[0] for row in rows}
    return (
        all(len(row) == len(header) + 1 for row in rows)
        and len(first) == len(rows)
        and any(row[-1].strip() for row in rows)
    )


def _is_skipped(line: str) -> bool:
    return line.startswith("#") or not line.strip()


def _hash_header(line: str, rest: list[str], separator: str) -> str:
    """Return the last of the first lines with # without it if it is the header; or nothing.

    It is if the next line already is a row, with a number, and has as many fields. A # that is a
    field of its own is the name of the first column, such as that of row numbers.
    """
    name_line = line.lstrip("#").lstrip(" ")  # A tab may separate it from the next name.
    lines = [name_line, *rest]
    separator = separator or _find_separator(lines)
    names, first = (next(iter(_records(part, separator)), []) for part in ([name_line], rest))
    is_row = any(field.strip().replace(".", "", 1).lstrip("-").isdigit() for field in first)
    if not (1 < len(names) == len(first) and is_row):
        return ""
    return name_line if names[0].strip() else line


def _are_comments(lines: list[str], separator: str, fields: int) -> bool:
    """Return whether no line that begins with # is a row of the table."""
    marked = [line for line in lines if line.startswith("#")]
    return all(len(row) != fields for row in _records(marked, separator))


def _find_separator(lines: list[str]) -> str:
    """Return the separator that gives most lines the field count of the header, and most fields."""
    scores = {separator: _score(lines, separator) for separator in SEPARATORS}
    best = max(scores, key=lambda separator: scores[separator])
    stripped = [line.strip() for line in lines if line.strip()]
    if scores[best][0] == 0 and _score(stripped, " ")[0] >= _SPACE_SHARE:
        return " "
    return best


def _score(lines: list[str], separator: str) -> tuple[float, int]:
    records = [row for row in _records(lines, separator) if row]
    widths = [len(row) for row in records]
    if not widths or widths[0] == 1:
        return 0.0, 1
    if _have_row_names(records):
        return 1.0, widths[0]
    return sum(width == widths[0] for width in widths) / len(widths), widths[0]


def _records(lines: Iterable[str], separator: str) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=separator, skipinitialspace=separator == " ")


def _name_all(names: list[str], where: str) -> list[str]:
    """Return the names, and a name for each column without one."""
    # Spaces after all separators belong to the separators, as in: age, city, income
    padded = len(names) > 1 and all(name.startswith(" ") for name in names[1:])
    given = [name.strip() if padded else name for name in names]
    for name in given:
        if name and given.count(name) > 1:
            raise UserError(
                f"{where}: expected different names for all columns, got {quoted(name)} "
                f"{given.count(name)} times; rename all but one."
            )
    return [name or free_name(i, given) for i, name in enumerate(given)]


def free_name(position: int, names: Iterable[str]) -> str:
    """Return the name of a column without a name: ``column_1`` is the first one."""
    name = f"column_{position + 1}"
    return f"{name}_" if name in names else name


def _needs_decoding(file: Path) -> bool:
    """Return whether a file is compressed, not in UTF-8, or has single carriage returns."""
    start = _read_start(file, compressed=True)
    if any(start.startswith(mark) for mark in _COMPRESSED) or _encoding(start) != "utf-8-sig":
        return True
    return b"\r" in start and b"\n" not in start


def _open_text(file: Path, errors: str = "strict") -> IO[str]:
    """Return a text file for reading, decompressed and decoded. Single CRs become line ends."""
    opener = _find_opener(file)
    start = _read_start(file, compressed=False)
    encoding = _encoding(start)
    nul_free = start if encoding == "utf-8-sig" else start.replace(b"\0", b"")
    only_carriage_returns = b"\r" in nul_free and b"\n" not in nul_free
    stream = opener(file) if opener else file.open("rb")
    newline = None if only_carriage_returns else ""
    return io.TextIOWrapper(stream, encoding, errors, newline)


def _find_opener(file: Path) -> Any:
    start = _read_start(file, compressed=True)
    return next((opener for mark, opener in _COMPRESSED.items() if start.startswith(mark)), None)


def _read_start(file: Path, compressed: bool) -> bytes:
    """Return the first bytes of a file, as they are or decompressed."""
    opener = None if compressed else _find_opener(file)
    with opener(file) if opener else file.open("rb") as stream:
        return stream.read(65_536)


def _encoding(start: bytes) -> str:
    """Return the encoding of a file from its first bytes: by a byte order mark, or by NULs."""
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding
    # Of text in UTF-16 without a mark, every second byte is mostly 0.
    for offset, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(start) > 3 and start[offset::2].count(0) > 0.4 * len(start) / 2:
            return encoding
    return "utf-8-sig"


def _scan_bytes(file: Path, separator: str) -> tuple[bool, bool]:
    """Return whether a file has blank lines, and whether polars reads its quotes as csv does.

    It does if each opening quote begins a field, and each closing quote ends one.
    """
    blank_lines, inside = False, False
    before = b"\n"
    beside = np.frombuffer(f'{separator}\n\r"'.encode(), np.uint8)
    with file.open("rb") as stream:
        chunk = stream.read(CHUNK_BYTES).removeprefix(codecs.BOM_UTF8)
        while chunk:
            following = stream.read(CHUNK_BYTES)
            if not blank_lines:
                edge = before + chunk[:2]
                blank_lines = any(
                    b"\n\n" in part or (b"\r" in part and b"\n\r\n" in part)
                    for part in (edge, chunk)
                )
            if b'"' in chunk:
                data = np.frombuffer(chunk, np.uint8)
                quotes = np.flatnonzero(data == ord('"'))
                padded = np.concatenate(
                    [[before[-1]], data, [following[0] if following else ord("\n")]]
                )
                is_opening = (np.arange(len(quotes)) + inside) % 2 == 0
                neighbours = padded[np.where(is_opening, quotes, quotes + 2)]
                if not np.isin(neighbours, beside).all():
                    return blank_lines, False
                inside ^= bool(len(quotes) % 2)
            before, chunk = (before + chunk[-2:])[-2:], following
    return blank_lines, not inside


def _rewrite(file: Path, folder: Path, dialect: Dialect, head: list[str]) -> Path:
    """Write a copy with commas and standard quotes, as Python's csv module reads the file."""
    copy = folder / f"{len(list(folder.iterdir()))}.csv"
    # Spaces after a separator may precede the quotes, as in: 1, "a, b"
    spaces = dialect.separator == " " or any(f'{dialect.separator} "' in line for line in head)
    with (
        file.open(encoding="utf-8-sig", newline="") as source,
        copy.open("w", encoding="utf-8", newline="") as target,
    ):
        lines: Iterable[str] = islice(source, dialect.skipped, None)
        if dialect.comment:
            lines = (line for line in lines if not line.startswith(dialect.comment))
        if dialect.separator == " ":
            lines = (line.strip() for line in lines)
        rows = csv.reader(lines, delimiter=dialect.separator, skipinitialspace=spaces)
        records: Iterator[list[str]] = (row for row in rows if row)
        if dialect.row_names:
            next(records)
            records = chain([list(dialect.names)], records)
        csv.writer(target, lineterminator="\n").writerows(records)
    return copy
