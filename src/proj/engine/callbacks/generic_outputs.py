"""Outputs of a user's own steps as a table: arrays of equal or unequal shapes, and lists."""

from collections.abc import Iterable, Sequence, Sized
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from torch import Tensor
from torch.utils.data import DataLoader

from proj.engine.callbacks.step_outputs import to_array
from proj.models.checks import num_rows
from proj.schema import Array, Batch

# The values of a batch for each of its rows: an array [rows, ...], or a list with an item per row.
Values: TypeAlias = Array | list[Any]

# An array of more columns becomes one column of arrays.
MAX_NUMBERED_COLUMNS = 100


class NoTable(Exception):
    """The outputs of the batches make no table. The message gives the reason."""


def columns_of(outputs: Any) -> dict[str, Values] | None:
    """Return the outputs of a step by name, with a value for each row.

    Tensors, arrays and lists are taken, alone (``prediction``) or in a dict. Other entries of a
    dict, such as a loss, are left out: see ``left_out``. None without an entry that has rows, and
    if the entries are not of the same number of rows.
    """
    named = outputs if isinstance(outputs, dict) else {"prediction": outputs}
    columns = {str(name): _per_row(values) for name, values in named.items()}
    found = {name: values for name, values in columns.items() if values is not None}
    return found if len({len(values) for values in found.values()}) == 1 else None


def left_out(outputs: Any) -> dict[str, Any]:
    """Return the entries of a dict of outputs that hold no value for each row, such as a loss."""
    if not isinstance(outputs, dict):
        return {}
    return {str(name): values for name, values in outputs.items() if not _has_rows(values)}


def described(outputs: Any) -> str:
    """Return the kinds of outputs for a message: ``a: Tensor [3, 2], b: Tensor [1], c: float``."""
    if not isinstance(outputs, dict):
        return _kind(outputs)
    return ", ".join(f"{name}: {_kind(values)}" for name, values in outputs.items())


def _kind(values: Any) -> str:
    name = type(values).__name__
    if isinstance(values, Tensor | np.ndarray):
        return f"{name} {list(values.shape)}"
    return f"{name} of {len(values)}" if isinstance(values, list | tuple) else name


def rows_in(batch: Any, loader: Any, batch_idx: int) -> int | None:
    """Return the number of rows of a batch; None if it is not known.

    A user's batch may have its rows on any axis of any of its parts. So the first axis of its
    inputs counts only if the loader has put as many items into the batch.
    """
    if isinstance(batch, Batch):
        return num_rows(batch.x)
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    parts = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    if not parts or not isinstance(parts[0], Tensor) or not parts[0].ndim:
        return None
    rows = num_rows(parts)
    return rows if rows == _items_in(loader, batch_idx) else None


def _items_in(loader: Any, batch_idx: int) -> int | None:
    """Return how many items a DataLoader has put into a batch; None for samplers of the user."""
    batches = loader.batch_sampler if isinstance(loader, DataLoader) else None
    # Lightning wraps the BatchSampler of a prediction, and the wrapper has its attributes.
    size, items = getattr(batches, "batch_size", None), getattr(batches, "sampler", None)
    if not isinstance(size, int) or not isinstance(items, Sized):
        return None
    return min(size, len(items) - batch_idx * size)


def _has_rows(values: Any) -> bool:
    return values.ndim > 0 if isinstance(values, Tensor | np.ndarray) else isinstance(values, list)


def _per_row(values: Any) -> Values | None:
    if not _has_rows(values):
        return None
    if isinstance(values, list):
        return [_plain(value) for value in values]
    array: Array = to_array(values) if isinstance(values, Tensor) else values
    return array


def _plain(value: Any) -> Any:
    """Return the value of one row, such as the boxes and labels of an image, without tensors."""
    if isinstance(value, dict):
        return {str(name): _as_list(_plain(part)) for name, part in value.items()}
    return to_array(value) if isinstance(value, Tensor) else value


def _as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def table_of(chunks: Sequence[dict[str, Values]]) -> pl.DataFrame:
    """Return the columns of all batches as a table in the order of the column ``row``.

    An array of several columns gets numbered names; one of more than ``MAX_NUMBERED_COLUMNS``
    becomes a column of arrays. Arrays that differ in shape from batch to batch, and lists, become a
    column of lists.

    Raises:
        NoTable: if the batches differ in their names, or a column would be of several types.
    """
    table: dict[str, Any] = {}
    for name in chunks[0]:
        if any(chunk.keys() != chunks[0].keys() for chunk in chunks):
            raise NoTable("the names differ from batch to batch")
        parts = [chunk[name] for chunk in chunks]
        if have_equal_shapes([{name: part} for part in parts]):
            table |= _numbered(name, np.concatenate(parts))
        else:
            table[name] = _lists(name, [row for part in parts for row in part])
    if "row" not in table:
        raise NoTable("row holds several numbers per row")
    frame = pl.DataFrame(table).sort("row", maintain_order=True)
    # Row numbers of batches have 32 bits where they fit, those of files always 64 bits.
    return frame.cast({"row": pl.Int64}) if frame["row"].dtype == pl.Int32 else frame


def have_equal_shapes(chunks: Sequence[dict[str, Values] | None]) -> bool:
    """Return whether all batches have arrays of the same names, and rows of the same shapes."""
    first = _row_shapes(chunks[0])
    return None not in first.values() and all(_row_shapes(chunk) == first for chunk in chunks)


def _row_shapes(chunk: dict[str, Values] | None) -> dict[str, tuple[int, ...] | None]:
    """Return the shape of a row by name; None for a list."""
    return {
        name: values.shape[1:] if isinstance(values, np.ndarray) else None
        for name, values in (chunk or {"": []}).items()
    }


def _numbered(name: str, values: Array) -> dict[str, Any]:
    wide = values.reshape(len(values), -1)
    width = wide.shape[1]
    if width > MAX_NUMBERED_COLUMNS:
        return {name: pl.Series(name, values)}
    return {name if width == 1 else f"{name}_{i}": wide[:, i] for i in range(width)}


def _lists(name: str, rows: Iterable[Any]) -> pl.Series:
    """Return a column of lists, or of single values, in the type of the arrays among the rows."""
    rows = list(rows)
    arrays = [row for row in rows if isinstance(row, np.ndarray | np.generic)]
    plain = [_as_list(row) for row in rows]
    try:
        if len(arrays) < len(rows) or len({row.ndim for row in arrays}) > 1:
            return pl.Series(name, plain)
        dtype = np.result_type(*{row.dtype for row in arrays})
        kind: Any = pl.Series(np.zeros(0, dtype)).dtype
        for _ in range(arrays[0].ndim):
            kind = pl.List(kind)
        return pl.Series(name, plain, dtype=kind)
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise NoTable(f"{name} holds values of several types") from error
