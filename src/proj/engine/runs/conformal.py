"""Conformal intervals and sets: the columns ``low`` and ``high``, or ``set``, of predictions."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from proj.schema import Array, Label, Schema, Task


def uncertainty_columns(
    schema: Schema, output: Array, limits: tuple[float, ...]
) -> dict[str, Array | pl.Series]:
    """Return the columns of intervals or sets by name; none without limits.

    Numbers have ``low`` and ``high``, and all of ``low`` come before all of ``high``. Classes and
    labels have ``set``, a list that may be empty. With several targets or labels, each name is
    appended: ``low_NAME``.

    Args:
        schema: the schema of the model's data.
        output: what ``Model.predict_proba`` returns.
        limits: one of each target or label, or one of all classes; see ``Calibration``.
    """
    names = schema.target_names
    suffixes = [f"_{name}" for name in names] if len(names) > 1 else [""]
    if not limits:
        return {}
    if schema.task == "regression":
        half = np.asarray(limits)
        low, high = output - half, output + half
        lows = {f"low{suffix}": low[:, i] for i, suffix in enumerate(suffixes)}
        return {**lows, **{f"high{suffix}": high[:, i] for i, suffix in enumerate(suffixes)}}
    inside = in_sets(schema.task, output, limits)
    options = schema.classes if schema.task != "multilabel" else (0, 1)
    return {f"set{suffix}": _lists(inside[:, i], options) for i, suffix in enumerate(suffixes)}


def option_probabilities(task: Task, output: Array) -> Array:
    """Return the probability of each option of each target: [rows, targets, options].

    The options are the classes, or the absence and the presence of a label.
    """
    if task == "multiclass":
        return output[:, None]
    present = output[:, None] if task == "binary" else output
    return np.stack([1 - present, present], axis=2)


def in_sets(task: Task, output: Array, limits: tuple[float, ...]) -> Array:
    """Return whether each option is in the set of its target: [rows, targets, options]."""
    probability = option_probabilities(task, output)
    return np.asarray(probability >= np.asarray(limits, probability.dtype)[:, None])


def _lists(inside: Array, options: Sequence[Label]) -> pl.Series:
    """Return a list of the options of each row, given ``inside`` [rows, options]."""
    members = [options[i] for i in np.nonzero(inside)[1].tolist()]
    ends = np.cumsum(inside.sum(axis=1)).tolist()
    lists = [members[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return pl.Series(lists, dtype=pl.List(pl.Series(list(options)).dtype))
