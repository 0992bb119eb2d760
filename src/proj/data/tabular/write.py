"""A table's rows encoded into arrays on the disk, in one streaming pass."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import Progress

from proj.data.cache import create
from proj.data.tabular import columns
from proj.data.tabular import files as tables
from proj.errors import UserError
from proj.schema import Column, Schema

CHUNK = 500_000  # rows encoded at once

Array = np.ndarray[Any, Any]


def batches(files: list[Path], table: pl.LazyFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    """The table a chunk at a time, with the number of each one's first row.

    By slices: polars' own iterator reads ahead as fast as it can, and a large table would pile up in memory.
    """
    start = 0
    while len(batch := tables.read(files, table.slice(start, CHUNK))):
        yield start, batch
        start += len(batch)


def write_parts(
    folder: Path,
    files: list[Path],
    table: pl.LazyFrame,
    schema: Schema,
    y: Array | None,
    parts: tuple[str, ...],
    part: Array | None = None,
) -> None:
    """Encode every row in one streaming pass, each into its part's arrays (all into the first, where ``part`` is None)."""
    count = (
        len(part) if part is not None else int(tables.read(files, table.select(pl.len())).item())
    )
    part = np.zeros(count, np.uint8) if part is None else part
    arrays = _empty(
        folder, schema, dict(zip(parts, np.bincount(part, minlength=4).tolist(), strict=False))
    )
    encoded = table.select(
        columns.encode(c).alias(f"{i}")
        for i, c in enumerate((*schema.numeric, *schema.categorical))
    )
    filled = [0] * len(parts)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"preparing {files[0].name}", total=count)
        for start, batch in batches(files, encoded):
            values = _values(batch, len(schema.numeric))
            _check_finite(values["numeric"], schema, start, files)
            for i, stage in enumerate(parts):
                here = part[start : start + len(batch)] == i
                end = filled[i] + int(here.sum())
                for kind, rows in values.items():
                    arrays[stage, kind][filled[i] : end] = rows[here]
                filled[i] = end
            bar.update(task, advance=len(batch))
    for i, stage in enumerate(parts):
        rows = np.flatnonzero(part == i)
        np.save(folder / f"{stage}_row.npy", rows)
        if y is not None:
            np.save(folder / f"{stage}_y.npy", y[rows])


def _empty(folder: Path, schema: Schema, sizes: dict[str, int]) -> dict[tuple[str, str], Array]:
    """An array to fill for each part and each kind of input."""
    columns_of: dict[str, tuple[tuple[Column, ...], Any]] = {
        "numeric": (schema.numeric, np.float32),
        "categorical": (schema.categorical, np.int32),
    }
    return {
        (stage, kind): create(folder / f"{stage}_{kind}.npy", dtype, (size, len(some)))
        for stage, size in sizes.items()
        for kind, (some, dtype) in columns_of.items()
    }


def _values(batch: pl.DataFrame, numbers: int) -> dict[str, Array]:
    """Encoded columns as arrays: the first ``numbers`` are numeric. polars makes no rows of no columns."""
    halves = {"numeric": batch[:, :numbers], "categorical": batch[:, numbers:]}
    return {
        kind: half.to_numpy() if half.width else np.zeros((len(batch), 0))
        for kind, half in halves.items()
    }


def _check_finite(numbers: Array, schema: Schema, start: int, files: list[Path]) -> None:
    if (wrong := np.isinf(numbers)).any():
        row, column = np.argwhere(wrong)[0]
        raise UserError(
            f"{files[0]}: column {schema.numeric[column].source}: expected finite numbers, got an infinite one "
            f"in row {start + row}; correct it, or leave it empty."
        )
