"""Predictions as a table, in the user's own labels and units."""

import json
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl

from proj.engine.escaping import FORMULA, NUMBER, csv_cell
from proj.engine.runs.conformal import uncertainty_columns
from proj.errors import UserError
from proj.schema import DEFAULT_THRESHOLD, Array, Schema


def _write_csv(table: pl.DataFrame, file: IO[bytes]) -> None:
    """Write a table as CSV, with lists and arrays as JSON."""
    nested = [c for c in table.get_columns() if c.dtype.is_nested()]
    texts = [pl.Series(c.name, [json.dumps(value) for value in c.to_list()]) for c in nested]
    table.with_columns(texts).write_csv(file)


WRITERS = {".parquet": pl.DataFrame.write_parquet, ".csv": _write_csv}


def apply_thresholds(
    probability: Array, thresholds: tuple[float, ...] = DEFAULT_THRESHOLD
) -> Array:
    """Return the decisions, 0 or 1, for probabilities.

    Args:
        probability: of the positive class [rows] or of each label [rows, labels].
        thresholds: one for all, or one for each label. A larger probability gives 1.
    """
    return (probability > np.asarray(thresholds, probability.dtype)).astype(np.int64)


def frame(
    schema: Schema,
    row: Array,
    output: Array,
    target: Array | None = None,
    thresholds: tuple[float, ...] = DEFAULT_THRESHOLD,
    weight: Array | None = None,
    conformal_limits: tuple[float, ...] = (),
) -> pl.DataFrame:
    """Return targets, predictions and probabilities as a table in row order.

    The columns are ``row``, ``weight`` and ``target`` if they are known, ``prediction`` and
    ``probability_CLASS``, and with conformal limits ``low`` and ``high``, or ``set``. With several
    targets or labels, each name is appended: ``prediction_NAME``.

    Args:
        schema: the schema of the model's data.
        row: each row's number in its source [rows].
        output: what ``Model.predict_proba`` returns: [rows] (binary), [rows, classes],
            [rows, labels] or [rows, targets].
        target: class numbers [rows], or [rows, labels] or [rows, targets].
        thresholds: see ``apply_thresholds``.
        weight: the rows' weights [rows].
        conformal_limits: see ``uncertainty_columns``.
    """
    columns: dict[str, Array | pl.Series] = {"row": row.astype(np.int64, copy=False)}
    columns |= {} if weight is None else {"weight": weight}
    if schema.task in ("binary", "multiclass"):
        columns |= _class_columns(schema, output, target, thresholds)
    else:
        columns |= _target_columns(schema, output, target, thresholds)
    columns |= uncertainty_columns(schema, output, conformal_limits)
    return pl.DataFrame(columns).sort("row", maintain_order=True)


def _class_columns(
    schema: Schema, output: Array, target: Array | None, thresholds: tuple[float, ...]
) -> dict[str, Array]:
    if schema.task == "binary":
        probability = np.stack([1 - output, output], axis=1)
        predicted = apply_thresholds(output, thresholds)
    else:
        probability, predicted = output, output.argmax(1)
    labels = np.asarray(schema.classes)
    columns: dict[str, Array] = {} if target is None else {"target": labels[target]}
    columns["prediction"] = labels[predicted]
    names = enumerate(schema.class_names)
    return columns | {f"probability_{name}": probability[:, i] for i, name in names}


def _target_columns(
    schema: Schema, output: Array, target: Array | None, thresholds: tuple[float, ...]
) -> dict[str, Array]:
    is_multilabel, names = schema.task == "multilabel", schema.target_names
    suffixes = [f"_{name}" for name in names] if len(names) > 1 else [""]
    predicted = apply_thresholds(output, thresholds) if is_multilabel else output
    columns: dict[str, Array] = {}
    if target is not None:
        target = target.astype(predicted.dtype)
        columns |= {f"target{suffix}": target[:, i] for i, suffix in enumerate(suffixes)}
    columns |= {f"prediction{suffix}": predicted[:, i] for i, suffix in enumerate(suffixes)}
    if is_multilabel:
        columns |= {f"probability{suffix}": output[:, i] for i, suffix in enumerate(suffixes)}
    return columns


def outputs_in(schema: Schema, table: pl.DataFrame) -> Array:
    """Return the outputs in a table of predictions, as ``frame`` takes them.

    Raises the errors of polars for a missing column.
    """
    if schema.task in ("binary", "multiclass"):
        output = table[[f"probability_{name}" for name in schema.class_names]].to_numpy()
        return output[:, 1] if schema.task == "binary" else output
    names, prefix = schema.target_names, "prediction"
    if schema.task == "multilabel":
        prefix = "probability"
    suffixes = [f"_{name}" for name in names] if len(names) > 1 else [""]
    return table[[f"{prefix}{suffix}" for suffix in suffixes]].to_numpy()


def escape_formulas(table: pl.DataFrame) -> pl.DataFrame:
    """Return a table whose names and texts a spreadsheet shows and does not compute."""
    columns = []
    for name, column in zip(table.columns, table.get_columns(), strict=True):
        if column.dtype in (pl.String, pl.Categorical, pl.Enum):
            texts = column.cast(pl.String)
            is_formula = texts.str.contains(FORMULA) & ~texts.str.contains(NUMBER)
            column = ("'" + texts).zip_with(is_formula.fill_null(False), texts)
        columns.append(column.rename(csv_cell(name)))
    return pl.DataFrame(columns)


def writer(path: Path) -> Any:
    """Return the polars method that writes a table to a file with this ending."""
    if path.suffix not in WRITERS:
        raise UserError(
            f"--output: expected a file name that ends in {' or '.join(WRITERS)}, got {path.name}; "
            "change the ending."
        )
    return WRITERS[path.suffix]
