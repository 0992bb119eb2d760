"""Predictions as a table, in the user's own labels and units."""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl

from proj.errors import UserError
from proj.schema import DEFAULT_THRESHOLD, Schema

Array: TypeAlias = np.ndarray[Any, Any]

WRITERS = {".parquet": pl.DataFrame.write_parquet, ".csv": pl.DataFrame.write_csv}


def decided(probability: Array, thresholds: tuple[float, ...] = DEFAULT_THRESHOLD) -> Array:
    """Whether a row is of the positive class [rows], or has each label [rows, labels]: 0 and 1.

    ``thresholds`` are one for all, or one for each label.
    """
    return (probability > np.asarray(thresholds, probability.dtype)).astype(np.int64)


def frame(
    schema: Schema,
    row: Array,
    output: Array,
    target: Array | None = None,
    thresholds: tuple[float, ...] = DEFAULT_THRESHOLD,
) -> pl.DataFrame:
    """One line a row, in row order: ``row``, targets where they are known, predictions, probabilities.

    ``output`` is what ``Model.predict_proba`` gives: [rows] (binary), [rows, classes], [rows, labels] or [rows, targets].
    Several targets or labels have their names behind ``target_`` and ``prediction_``.
    """
    columns: dict[str, Array] = {"row": row}
    if schema.task in ("binary", "multiclass"):
        probability = np.stack([1 - output, output], axis=1) if schema.task == "binary" else output
        predicted = decided(output, thresholds) if schema.task == "binary" else output.argmax(1)
        labels = np.asarray(schema.classes)
        if target is not None:
            columns["target"] = labels[target]
        columns["prediction"] = labels[predicted]
        columns |= {
            f"probability_{name}": probability[:, i] for i, name in enumerate(schema.class_names)
        }
    else:
        multilabel = schema.task == "multilabel"
        ends = (
            [f"_{name}" for name in schema.target_names] if len(schema.target_names) > 1 else [""]
        )
        predicted = decided(output, thresholds) if multilabel else output
        if target is not None:
            columns |= {
                f"target{end}": target[:, i].astype(predicted.dtype) for i, end in enumerate(ends)
            }
        columns |= {f"prediction{end}": predicted[:, i] for i, end in enumerate(ends)}
        if multilabel:
            columns |= {f"probability{end}": output[:, i] for i, end in enumerate(ends)}
    return pl.DataFrame(columns).sort("row")


def writer(path: Path) -> Any:
    """The polars method that writes this kind of file, by its ending."""
    if path.suffix not in WRITERS:
        raise UserError(
            f"--output: expected a name that ends in {' or '.join(WRITERS)}, got {path.name}."
        )
    return WRITERS[path.suffix]
