"""Artifacts that `test` saves so that the report can be rebuilt without the data.

These are the columns of a table, what else its source says of the worst mistakes, and images of
the worst mistakes.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from PIL import Image
from torch import Tensor

from proj.data.loader import take
from proj.engine.console import plural
from proj.engine.evaluation.curves import mistakes
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.runs.files import atomic_write
from proj.engine.runs.run import Run
from proj.schema import Array, Batch, Column, Schema

if TYPE_CHECKING:
    # It imports Lightning, which takes seconds and which `report` does not need.
    from proj.data.base import DataModule

COLUMNS, IMAGES = "columns.parquet", "mistakes.npz"
LEFT_OUT = "mistakes.parquet"
MAX_COLUMNS = 200
# Columns of the source that are not inputs and are saved for the worst mistakes.
MAX_LEFT_OUT = 8
# The values of all columns together take at most 200 MB.
MAX_VALUES = 50_000_000
MAX_SIDE_PIXELS = 96
# Name of all categories that are rare or missing in the training split.
OTHER = "(other)"


def save_artifacts(
    run: Run, data: "DataModule", schema: Schema, predictions: PredictionSet
) -> Iterator[str]:
    """Write the artifacts of the test split into ``test/`` of the run's folder.

    Yields a message for artifacts that are left out, with the reason.
    """
    # Remove the artifacts of an earlier test.
    for name in (COLUMNS, IMAGES, LEFT_OUT):
        (run.path / "test" / name).unlink(missing_ok=True)
    if getattr(data, "is_streamed", False):
        yield "the report has no slices by columns: the rows are streamed"
        return
    split = data.splits["test"]
    if schema.columns:
        yield from _save_columns(run, split, schema, predictions)
        _save_left_out(run, data, predictions)
    elif schema.input_type == "uint8" and len(schema.input_shape) == 3 and not predictions.missing:
        yield from _save_images(run, split, schema, predictions)


def _save_columns(
    run: Run, split: Batch, schema: Schema, predictions: PredictionSet
) -> Iterator[str]:
    # The words of texts are not saved.
    count = sum(column.kind != "word" for column in schema.columns)
    rows = len(predictions)
    if count > MAX_COLUMNS or count * rows > MAX_VALUES:
        limit = f"{MAX_COLUMNS} columns" if count > MAX_COLUMNS else f"{MAX_VALUES:,} values"
        yield (
            f"the report has no slices: at most {limit} are saved, the test split has "
            f"{plural(count, 'column')} of {plural(rows, 'row')}"
        )
        return
    table = columns(take(split, row_positions(split, predictions.row)), schema)
    atomic_write(run.path / "test" / COLUMNS, table.write_parquet)


def _save_left_out(run: Run, data: "DataModule", predictions: PredictionSet) -> None:
    """Write the columns that are not inputs, such as names, of the rows with the worst mistakes."""
    names = data.left_out_columns[:MAX_LEFT_OUT]
    if predictions.missing or not names or not len(indices := mistakes(predictions)):
        return
    rows = predictions.row[indices]
    table = data.source_columns(names, rows, "test").cast(pl.String)
    # A column may have the name of the row numbers.
    numbered = pl.DataFrame({"row": rows}).hstack(table.rename(lambda name: f"left_out_{name}"))
    atomic_write(run.path / "test" / LEFT_OUT, numbered.write_parquet)


def _save_images(
    run: Run, split: Batch, schema: Schema, predictions: PredictionSet
) -> Iterator[str]:
    if schema.input_shape[0] not in (1, 3):
        yield (
            "the report has no images of mistakes: expected 1 or 3 channels, they have "
            f"{schema.input_shape[0]}"
        )
        return
    rows = predictions.row[mistakes(predictions)]
    if not len(rows):
        return
    x = take(split, row_positions(split, rows)).x
    assert isinstance(x, Tensor)
    pixels = thumbnails(x.numpy())
    atomic_write(run.path / "test" / IMAGES, lambda file: np.savez(file, row=rows, pixels=pixels))


def row_positions(split: Batch, rows: Array) -> Tensor:
    """Return the indices in a split of the rows with the given row numbers: [rows]."""
    order = split.row.numpy().argsort()
    return torch.from_numpy(order[np.searchsorted(split.row.numpy(), rows, sorter=order)])


def columns(rows: Batch, schema: Schema) -> pl.DataFrame:
    """Return the columns of a table, decoded from the net's inputs; null where missing.

    Numbers stay numbers, days become datetimes, and categories have their names.
    """
    assert isinstance(rows.x, dict)
    # The month, weekday and hour of a date follow from its days.
    dated = {column.source for column in schema.columns if column.kind == "days"}
    decoded = {}
    for kind, described in (("numeric", schema.numeric), ("categorical", schema.categorical)):
        for column, values in zip(described, rows.x[kind].numpy().T, strict=True):
            if column.kind == "word":
                continue  # Of texts, the length is shown.
            if column.kind not in ("month", "weekday", "hour") or column.source not in dated:
                decoded[column.name] = _column(column, values)
    names = [column.name for column in schema.columns if column.name in decoded]
    return pl.DataFrame({name: decoded[name] for name in names})


def _column(column: Column, values: Array) -> pl.Series:
    if column.kind == "category":
        names = [None, OTHER, *column.categories]
        numbers = list(range(len(names)))
        return pl.Series(values).replace_strict(numbers, names, return_dtype=pl.String)
    series = pl.Series(values).fill_nan(None)
    if column.kind == "days":
        milliseconds = (series.cast(pl.Float64) * 86_400_000).round()
        return milliseconds.cast(pl.Int64).cast(pl.Datetime("ms"))
    return series


def thumbnails(images: Array) -> Array:
    """Return images with no side above ``MAX_SIDE_PIXELS``.

    From uint8 [rows, channels, height, width] with 1 or 3 channels to [rows, height, width] or
    [rows, height, width, 3]. If no image uses half of the range, such as digits from 0 to 16, all
    are made brighter by one factor.
    """
    small, factor = [], 255 // max(1, int(images.max()))
    for pixels in (images * np.uint8(factor)).transpose(0, 2, 3, 1):
        gray_or_rgb = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        image = Image.fromarray(np.ascontiguousarray(gray_or_rgb))
        image.thumbnail((MAX_SIDE_PIXELS, MAX_SIDE_PIXELS))
        small.append(np.asarray(image))
    return np.stack(small)
