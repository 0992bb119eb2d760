"""Bodies of requests as raw rows: JSON, CSV, Parquet and images; and all faults of the rows."""

import base64
import binascii
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from ..predictor import Predictor
from ..rows import InputError, match_names
from ..table import Table

# A place in the body, and what is wrong there.
Fault = tuple[list[str | int], str]

# Faults that one response lists.
MAX_FAULTS = 100


class Request(NamedTuple):
    """What a client has sent.

    Attributes:
        form: key of ``READERS``.
        parts: the body, or each file of a form.
    """

    form: str
    parts: list[bytes]


class BodyError(ValueError):
    """A request that cannot be answered.

    Attributes:
        status: status code of HTTP.
        faults: what is wrong, and where.
    """

    def __init__(self, status: int, faults: Sequence[Fault]) -> None:
        super().__init__(faults[0][1])
        self.status, self.faults = status, faults


def read_rows(model: Predictor, request: Request, max_rows: int) -> tuple[Any, int]:
    """Return the rows of a request as ``Predictor.encode`` takes them, and their number.

    Raises:
        BodyError: if the body has another form.
    """
    rows = READERS[request.form](model, request.parts)
    try:
        taken, count = model.take_rows(rows)
    except InputError as error:
        raise BodyError(422, [(["rows"], error.reason)]) from error
    if count > max_rows:
        message = f"expected at most {max_rows:,} rows, got {count:,}; send them in several parts"
        raise BodyError(413, [(["rows"], message)])
    return taken, count


def encode(model: Predictor, rows: Any) -> dict[str, Any]:
    """Return the inputs of the net for rows.

    Raises:
        BodyError: with all values that cannot be read.
    """
    try:
        return model.encode(rows)
    except InputError as error:
        faults = list(_faults(model.encoder, rows)) if isinstance(model.encoder, Table) else []
        raise BodyError(422, faults or [(_place(error), error.reason)]) from error


def _place(error: InputError) -> list[str | int]:
    row = [] if error.row is None else [error.row]
    return ["rows", *row, *([error.column] if error.column else [])]


def _faults(table: Table, rows: Any) -> Iterator[Fault]:
    """Yield the values that cannot be read, column by column, up to ``MAX_FAULTS``."""
    left = MAX_FAULTS
    for name, source in table.sources.items():
        try:
            values = match_names(rows, [name])[name]
        except InputError as error:
            yield ["rows", name], error.reason
            continue
        start = 0
        while left and start < len(values):
            try:
                source.read(values[start:], strict=True, first=start)
            except InputError as error:
                yield _place(error), error.reason
                left, start = left - 1, (error.row or 0) + 1
            else:
                break


# Readers of bodies


def _read_json(model: Predictor, parts: list[bytes]) -> Any:
    try:
        body = json.loads(parts[0])
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BodyError(400, [([], f"expected JSON: {reason}")]) from error
    rows = body["rows"] if isinstance(body, dict) and set(body) == {"rows"} else body
    if not isinstance(rows, list):
        message = f'expected {{"rows": [...]}} or a list of rows, got {_kind(rows)}'
        raise BodyError(422, [([], message)])
    readers = {"table": _check_dicts, "images": _decode_base64, "arrays": _to_array}
    return readers[model.kind](model, rows)


def _check_dicts(model: Predictor, rows: list[Any]) -> list[Any]:
    """Return rows if each of them has all columns: a name that is missing may be misspelled."""
    assert isinstance(model.encoder, Table)
    names = model.encoder.sources.keys()
    if all(isinstance(row, dict) and row.keys() >= names for row in rows):
        return rows
    if faults := list(islice(_row_faults(model.encoder, rows), MAX_FAULTS)):
        raise BodyError(422, faults)
    return rows


def _row_faults(table: Table, rows: list[Any]) -> Iterator[Fault]:
    """Yield the columns that rows lack, and the values that cannot be read."""
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            yield ["rows", i], f"expected an object with a value per column, got {_kind(row)}"
            continue
        columns = {name: [value] for name, value in row.items()} or {"": []}
        for name, source in table.sources.items():
            try:
                values = match_names(columns, [name])[name]
                source.read(values, strict=True, first=i)
            except InputError as error:
                hint = "" if error.row is not None else "; write null for a missing value"
                yield ["rows", i, name], error.reason + hint


def _decode_base64(model: Predictor, rows: list[Any]) -> list[bytes]:
    images: list[bytes] = []
    faults: list[Fault] = []
    for i, row in enumerate(rows):
        try:
            images.append(base64.b64decode(row, validate=True))
        except (TypeError, ValueError, binascii.Error):
            faults.append((["rows", i], "expected the content of an image file in base64"))
    if faults:
        raise BodyError(422, faults[:MAX_FAULTS])
    return images


def _to_array(model: Predictor, rows: list[Any]) -> Any:
    expected = np.dtype(model.spec["inputs"]["dtype"])
    try:
        array = np.array(rows)
    except ValueError as error:
        message = "expected rows of one shape, got rows of different shapes"
        raise BodyError(422, [(["rows"], message)]) from error
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "b" and expected.kind != "b"):
        raise BodyError(422, [(["rows"], "expected numbers, got other values")])
    if array.dtype.kind in "iu" and expected.kind in "iu":
        limits = np.iinfo(expected)
        outside = (array < limits.min) | (array > limits.max)
        if outside.any():
            row = int(outside.reshape(len(array), -1).any(axis=1).argmax())
            message = f"expected numbers from {limits.min} to {limits.max}"
            raise BodyError(422, [(["rows", row], message)])
        array = array.astype(expected)
    return array


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a boolean",
        type(None): "null",
    }
    return names.get(type(value), "a number")


def _read_csv(model: Predictor, parts: list[bytes]) -> Any:
    _require_table(model, "CSV")
    try:
        text = parts[0].decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BodyError(400, [([], f"expected CSV with commas in UTF-8: {error}")]) from error
    lines = [line for line in lines if line]
    if not lines:
        raise BodyError(400, [([], "expected CSV with a line of column names, got no line")])
    names, *rows = lines
    if len(set(names)) < len(names):
        raise BodyError(400, [([], "expected different column names, got one twice")])
    for i, row in enumerate(rows):
        if len(row) != len(names):
            message = f"expected {len(names)} values, got {len(row)}"
            raise BodyError(422, [(["rows", i], message)])
    empty = set(model.spec["inputs"]["null_words"])
    return {
        name: [None if row[i] == "" or row[i] in empty else row[i] for row in rows]
        for i, name in enumerate(names)
    }


def _read_parquet(model: Predictor, parts: list[bytes]) -> Any:
    _require_table(model, "Parquet")
    try:
        import polars as pl  # JSON and CSV do without it.
    except ModuleNotFoundError as error:
        raise BodyError(415, [([], "Parquet needs the package polars on this server")]) from error
    try:
        return pl.read_parquet(io.BytesIO(parts[0]))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise BodyError(400, [([], f"expected a Parquet file: {error}")]) from error


def _read_images(model: Predictor, parts: list[bytes]) -> Any:
    if model.kind != "images":
        raise BodyError(415, [([], f"expected rows of a {model.kind}, got files of images")])
    return parts


def _require_table(model: Predictor, form: str) -> None:
    if model.kind != "table":
        raise BodyError(415, [([], f"expected {model.kind}, got {form}, which holds tables")])


READERS: dict[str, Callable[[Predictor, list[bytes]], Any]] = {
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "images": _read_images,
}

# The form of a body by its content type, without parameters.
CONTENT_TYPES = {
    "application/json": "json",
    "text/csv": "csv",
    "application/vnd.apache.parquet": "parquet",
    "application/x-parquet": "parquet",
    "application/octet-stream": "images",
}
