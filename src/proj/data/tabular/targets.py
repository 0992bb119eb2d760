"""Target columns of a table: which task they are, and how they become what a loss takes."""

from typing import Any

import numpy as np
import polars as pl

from proj.data.tabular.columns import type_of
from proj.errors import UserError, nearest
from proj.schema import Label, Schema, Task

CLASSES = 20  # whole numbers of more different values are amounts, unless data.task says otherwise


def target_names(target: str | list[str]) -> list[str]:
    names = [target] if isinstance(target, str) else target
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"data.target: expected one column or several different ones, got {target}."
        )
    return names


def check_columns(names: list[str], wanted: list[str], option: str, where: str) -> None:
    for name in wanted:
        if name not in names:
            raise UserError(
                f"{option}: {where} has no column {name!r}.{nearest(name, names)} "
                f"It has {', '.join(names[:20])}{', …' if len(names) > 20 else ''}."
            )


def infer(values: pl.DataFrame) -> Task:
    """The task that target columns suggest."""
    if values.width > 1:
        zero_one = all(
            v.dtype == pl.Boolean
            or (v.dtype.is_numeric() and v.cast(pl.Float64).drop_nulls().is_in([0.0, 1.0]).all())
            for v in values
        )
        return "multilabel" if zero_one else "regression"
    given = values.to_series().drop_nulls()
    kind, distinct = type_of(given.dtype), given.n_unique()
    if kind == "date" or (
        kind == "number" and (distinct > CLASSES or (given.cast(pl.Float64) % 1 != 0).any())
    ):
        return "regression"
    return "binary" if distinct == 2 else "multiclass"


def labels_of(values: pl.Series, task: Task, where: str) -> tuple[Label, ...]:
    """The classes of a target column, in order; raises UserError where there are too few."""
    labels = tuple(values.drop_nulls().unique().sort().to_list())
    if len(labels) < 2 or (task == "binary" and len(labels) > 2):
        wanted = "two classes" if task == "binary" else "two classes or more"
        found = (
            f"{len(labels)} ({', '.join(map(str, labels[:5]))})"
            if labels
            else "none, every value is missing"
        )
        raise UserError(
            f"{where}: column {values.name}: expected {wanted} for the task {task}, got {found}; "
            "set data.target or data.task."
        )
    return labels


def plain(column: pl.Series) -> pl.Series:
    """Labels as values that a checkpoint can hold: text, whole numbers, floats or truth values."""
    kind = type_of(column.dtype)
    if kind == "number":
        return column if column.dtype.is_integer() else column.cast(pl.Float64)
    return column if kind == "boolean" else column.cast(pl.String)


def check_numbers(values: pl.DataFrame, task: Task, where: str) -> None:
    for column in values:
        if type_of(column.dtype) not in ("number", "boolean"):
            given = column.drop_nulls().head(1).to_list()
            raise UserError(
                f"{where}: column {column.name}: expected numbers for the task {task}, got {column.dtype}"
                f"{f', such as {given[0]!r}' if given else ''}; set data.target or data.task."
            )
        if column.null_count() == len(column):
            raise UserError(
                f"{where}: column {column.name}: expected targets, got missing values alone."
            )
        if (infinite := column.cast(pl.Float64).is_infinite()).any():
            raise UserError(
                f"{where}: column {column.name}: expected finite targets, got an infinite one in row "
                f"{infinite.arg_max()}; correct it, or leave it empty."
            )
        if (
            task == "multilabel"
            and not column.drop_nulls().cast(pl.Float64).is_in([0.0, 1.0]).all()
        ):
            raise UserError(
                f"{where}: column {column.name}: expected 0 and 1 alone for the task multilabel; set data.task."
            )


def encode(values: pl.DataFrame, schema: Schema, where: str) -> np.ndarray[Any, Any]:
    """Class numbers [rows] int64, -1 where missing; or numbers [rows, targets] float32, NaN where missing.

    Raises UserError for a label that the training part does not have.
    """
    if schema.task in ("regression", "multilabel"):
        check_numbers(values, schema.task, where)
        return values.select(pl.all().cast(pl.Float32).fill_null(float("nan"))).to_numpy()
    column = plain(values.to_series())
    known = pl.Series(list(schema.classes))
    if type_of(known.dtype) != type_of(column.dtype) and column.null_count() < len(column):
        raise UserError(
            f"{where}: column {column.name}: expected labels such as {schema.classes[0]!r}, as in training, "
            f"got {column.drop_nulls()[0]!r}."
        )
    codes = column.replace_strict(
        known, pl.Series(range(len(known))), default=-2, return_dtype=pl.Int64
    )
    codes = codes.zip_with(
        column.is_not_null(), pl.Series([-1], dtype=pl.Int64).new_from_index(0, len(column))
    )
    if (strange := codes == -2).any():
        row = int(strange.to_numpy().argmax())
        raise UserError(
            f"{where}: label {column[row]!r} of row {row} is out of range: the training part has "
            f"{', '.join(map(repr, schema.classes[:12]))}; correct it, or drop the row."
        )
    return codes.to_numpy()


def fit(task: Task, values: pl.DataFrame, where: str) -> dict[str, Any]:
    """The schema's fields on targets, from training rows."""
    names = tuple(values.columns)
    fields: dict[str, Any] = {"task": task, "target_names": names}
    fields |= dict.fromkeys(("classes", "class_counts", "target_mean", "target_std"), ())
    if task in ("binary", "multiclass"):
        column = plain(values.to_series())
        classes = labels_of(column, task, where)
        counts = dict(column.value_counts().rows())
        return fields | {
            "classes": classes,
            "class_counts": tuple(counts[label] for label in classes),
        }
    check_numbers(values, task, where)
    numbers = values.select(pl.all().cast(pl.Float64)).drop_nulls().to_numpy()
    if task == "multilabel":
        return fields | {"class_counts": tuple(numbers.sum(axis=0).astype(int).tolist())}
    std = numbers.std(axis=0)
    std[std == 0] = 1.0
    return fields | {
        "target_mean": tuple(numbers.mean(axis=0).tolist()),
        "target_std": tuple(std.tolist()),
    }
