"""What `test` keeps beside the predictions, so that the page needs no data: a table's columns, and pictures of mistakes."""

from collections.abc import Iterator

import numpy as np
import polars as pl
import torch
from PIL import Image
from torch import Tensor

from proj.data.base import DataModule
from proj.data.loader import take
from proj.engine.evaluation.curves import mistakes
from proj.engine.evaluation.prediction_set import Array, PredictionSet
from proj.engine.runs.run import Run, atomic_write
from proj.schema import Batch, Column, Schema

COLUMNS, PICTURES = "columns.parquet", "mistakes.npz"
MOST_COLUMNS = 200
MOST_VALUES = 50_000_000  # of all columns together: 200 MB
SIDE = 96  # pixels
OTHER = "(other)"  # a category that is rare in training, or never seen there


def keep(run: Run, data: DataModule, schema: Schema, outcomes: PredictionSet) -> Iterator[str]:
    """Write them into ``test/`` of the run's folder, from the test part; yields what is left out, and why."""
    for name in (COLUMNS, PICTURES):  # of a test before
        (run.path / "test" / name).unlink(missing_ok=True)
    part = data.splits["test"]
    if schema.columns:
        count, values = len(schema.columns), len(schema.columns) * len(outcomes)
        if count > MOST_COLUMNS or values > MOST_VALUES:
            most = f"{MOST_COLUMNS} columns" if count > MOST_COLUMNS else f"{MOST_VALUES:,} values"
            yield f"the page has no slices: {count} columns of {len(outcomes)} rows are kept up to {most}"
            return
        table = columns(take(part, places(part, outcomes.row)), schema)
        atomic_write(run.path / "test" / COLUMNS, table.write_parquet)
    elif schema.input_type == "uint8" and len(schema.input_shape) == 3 and not outcomes.missing:
        if schema.input_shape[0] not in (1, 3):
            yield f"the page has no pictures of mistakes: they have {schema.input_shape[0]} channels, expected 1 or 3"
        elif len(wrong := mistakes(outcomes)):
            x = take(part, places(part, outcomes.row[wrong])).x
            assert isinstance(x, Tensor)
            rows, pixels = outcomes.row[wrong], thumbnails(x.numpy())
            atomic_write(
                run.path / "test" / PICTURES, lambda file: np.savez(file, row=rows, pixels=pixels)
            )


def places(part: Batch, rows: Array) -> Tensor:
    """Where in a part the rows with these numbers are: [rows]."""
    order = part.row.numpy().argsort()
    return torch.from_numpy(order[np.searchsorted(part.row.numpy(), rows, sorter=order)])


def columns(rows: Batch, schema: Schema) -> pl.DataFrame:
    """A table's columns as the net's inputs tell them: numbers, moments, and categories by name; null where missing."""
    assert isinstance(rows.x, dict)
    dated = {column.source for column in schema.columns if column.kind == "days"}
    found = {}
    for kind, some in (("numeric", schema.numeric), ("categorical", schema.categorical)):
        for column, values in zip(some, rows.x[kind].numpy().T, strict=True):
            if column.kind not in ("month", "weekday", "hour") or column.source not in dated:
                found[column.name] = _column(column, values)
    return pl.DataFrame(
        {column.name: found[column.name] for column in schema.columns if column.name in found}
    )


def _column(column: Column, values: Array) -> pl.Series:
    if column.kind == "category":
        names = [None, OTHER, *column.categories]
        return pl.Series(values).replace_strict(
            list(range(len(names))), names, return_dtype=pl.String
        )
    numbers = pl.Series(values).fill_nan(None)
    if column.kind == "days":
        return (
            (numbers.cast(pl.Float64) * 86_400_000).round().cast(pl.Int64).cast(pl.Datetime("ms"))
        )
    return numbers


def thumbnails(pictures: Array) -> Array:
    """uint8 [rows, channels, height, width], 1 or 3 channels, with no side above ``SIDE``: channels last, none if grey.

    Pictures of which none uses half of the range, as those of digits from 0 to 16, are made brighter, all by one factor.
    """
    shown, factor = [], 255 // max(1, int(pictures.max()))
    for pixels in (pictures * np.uint8(factor)).transpose(0, 2, 3, 1):
        image = Image.fromarray(
            np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        )
        image.thumbnail((SIDE, SIDE))
        shown.append(np.asarray(image))
    return np.stack(shown)
