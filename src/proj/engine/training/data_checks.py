"""Checks of a data set for findings that make a result worse than possible, or better than true."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from proj.data.base import DataModule
from proj.engine.training.equal_rows import find_equal_rows, target_rows
from proj.engine.yaml_text import yaml_value
from proj.errors import UserError
from proj.schema import Array, Batch, Finding, Schema, Task, is_pair

# A class with fewer training rows is too rare to learn.
MIN_CLASS_ROWS = 10

# Rows of a split that the check of single columns uses.
COLUMN_SAMPLE = 100_000

# A column that alone explains this share of the target probably contains it.
LEAK_THRESHOLD = 0.99

# Arrays are float32. A step above this share of the standard deviation hides differences.
MAX_ROUNDING = 0.01


def check_data(data: DataModule) -> list[Finding]:
    """Return all findings about a data module after ``setup``."""
    schema = data.schema
    assert schema is not None
    if is_streamed(data):
        return [*data.findings, *find_rare_classes(schema)]
    labelled = {
        name: split for name, split in data.splits.items() if name != "predict" and len(split.row)
    }
    findings = [
        *data.findings,
        *find_equal_rows(data, labelled),
        *_find_near_copies(data, labelled),
        *find_rare_classes(schema),
        *find_classes_without_rows(schema, labelled),
        *find_rounded_inputs(schema),
    ]
    if schema.columns and "val" in labelled:
        findings += find_leaking_columns(schema, labelled["train"], labelled["val"])
    return findings


def is_streamed(data: object) -> bool:
    """Return whether the splits of a data module hold some rows only; the others are streamed."""
    return bool(getattr(data, "is_streamed", False))


def require_whole_splits(data: object, verb: str) -> None:
    """Raise UserError if the splits of a data module are not in memory as a whole."""
    if is_streamed(data):
        raise UserError(
            f"{verb}: expected a data module whose splits fit into memory, such as Tabular, got "
            f"{type(data).__name__}, which streams its rows; use Tabular on a part of them."
        )


def _find_near_copies(data: DataModule, labelled: dict[str, Batch]) -> Iterator[Finding]:
    assert data.schema is not None
    if any(column.kind == "word" for column in data.schema.columns):
        # It imports polars, which arrays do not need.
        from proj.engine.training.near_copies import find_near_copies

        yield from find_near_copies(data, labelled)


def describe_positive(data: object, schema: Schema | None = None, training: str = "") -> str:
    """Return a line about the positive class of two, and how to change it; else nothing.

    Args:
        data: the data module.
        schema: the schema of its data; None means that of the data module.
        training: what must follow a change.
    """
    schema = schema or getattr(data, "schema", None)
    if not isinstance(schema, Schema) or schema.task != "binary":
        return ""
    (negative, positive), reason = schema.class_names, ""
    if getattr(data, "positive", None) is not None:
        reason = " (as data.positive says)"
    elif is_pair(schema.classes[1], schema.classes[0]):
        reason = f" ({positive} against {negative})"
    elif schema.class_counts and schema.class_counts[1] < schema.class_counts[0]:
        reason = " (the rarer one)"
    change = f"; to change it set data.positive{training}" if hasattr(data, "positive") else ""
    return f"positive class: {positive}{reason}{change}"


def find_rare_classes(schema: Schema) -> list[Finding]:
    """Find classes with fewer than ``MIN_CLASS_ROWS`` training rows."""
    counts = zip(schema.class_names, schema.class_counts, strict=True)
    rare = [f"{name} ({count})" for name, count in counts if count < MIN_CLASS_ROWS]
    if not rare:
        return []
    return [
        Finding(
            f"fewer than {MIN_CLASS_ROWS} training rows of {', '.join(rare[:10])}",
            "they are too few to learn from, and their metrics are mostly chance",
            "collect more, merge classes, or drop them",
        )
    ]


def find_classes_without_rows(schema: Schema, splits: dict[str, Batch]) -> Iterator[Finding]:
    """Find classes without validation rows, or without test rows."""
    if schema.task not in ("binary", "multiclass"):
        return
    names, trained = schema.class_names, schema.class_counts
    splits_by_classes: dict[tuple[int, ...], list[str]] = {}
    for split in ("val", "test"):
        if split in splits:
            rows = np.bincount(target_rows(splits[split])[:, 0], minlength=len(names))
            if absent := tuple(np.flatnonzero(rows[: len(names)] == 0).tolist()):
                splits_by_classes.setdefault(absent, []).append(f"no {split}")
    for absent, without in splits_by_classes.items():
        listed = [f"{names[i]} ({trained[i]})" if trained else names[i] for i in absent[:10]]
        yield Finding(
            f"{' and '.join(without)} rows of {', '.join(listed)}{', …' * (len(absent) > 10)}",
            "nothing shows how well they are predicted",
            "collect more (in parentheses: training rows), or merge classes",
        )


def find_rounded_inputs(schema: Schema) -> Iterator[Finding]:
    """Find features of arrays that float32 cannot tell apart. Tables have a check of their own."""
    if schema.input_type != "float32":
        return
    for i, (mean, std) in enumerate(zip(schema.input_mean, schema.input_std, strict=True)):
        step = float(np.spacing(np.float32(abs(mean))))
        if step > MAX_ROUNDING * std:
            name = schema.input_names[i] if schema.input_names else str(i)
            yield Finding(
                f"the values of feature {name}, around {mean:.10g}, are rounded to steps of "
                f"{step:.3g} (float32)",
                "the model cannot learn from smaller differences",
                "subtract a constant from the feature, such as its smallest value",
            )


def find_leaking_columns(schema: Schema, train: Batch, val: Batch) -> Iterator[Finding]:
    """Find columns that alone predict the target of the validation and of the training rows.

    The prediction is the mean or most frequent target of the training rows with an equal value, or
    for numbers a value between the same edges. A few validation rows may agree by chance.
    """
    assert isinstance(train.x, dict)
    assert isinstance(val.x, dict)
    y, y_val = (_sample(torch.from_numpy(target_rows(split))) for split in (train, val))
    found: set[str] = set()
    for kind, columns in (("numeric", schema.numeric), ("categorical", schema.categorical)):
        x, x_val = _sample(train.x[kind]), _sample(val.x[kind])
        for i, column in enumerate(columns):
            values, values_val = x[:, i], x_val[:, i]
            if kind == "numeric":
                values = np.searchsorted(column.edges, values)
                values_val = np.searchsorted(column.edges, values_val)
            share = _least_explained(values, values_val, y, y_val, schema.task)
            if share < LEAK_THRESHOLD or column.source in found:
                continue
            if _least_explained(values, values, y, y, schema.task) >= LEAK_THRESHOLD:
                found.add(column.source)
                yield Finding(
                    f"column {column.name} alone explains {share:.1%} of the target on the "
                    "validation split",
                    "if it is known only after the target, the model is useless on new rows",
                    f"in that case drop it: data.columns: {yaml_value({column.source: 'drop'})}",
                    column.source,
                )


def _least_explained(x: Array, x_val: Array, y: Array, y_val: Array, task: Task) -> float:
    """Return the share of the target that ``x`` explains worst; ``y`` is [rows, targets]."""
    return min(explained_share(x, x_val, y[:, j], y_val[:, j], task) for j in range(y.shape[1]))


def _sample(values: Tensor) -> Array:
    return values[:: -(-len(values) // COLUMN_SAMPLE)].numpy()


def explained_share(x: Array, x_val: Array, y: Array, y_val: Array, task: Task) -> float:
    """Return how much better equal values of ``x`` predict ``y_val`` than no input does.

    All arrays are [rows]. 0 means not better than the mean or most frequent ``y``, and 1 means
    without error: this is R² for regression, and the share of avoided errors for classes.
    """
    groups, group = np.unique(x, return_inverse=True)
    nearest = np.searchsorted(groups, x_val).clip(max=len(groups) - 1)
    is_known = groups[nearest] == x_val
    if task == "regression":
        means = np.bincount(group, y) / np.bincount(group)
        prediction = np.where(is_known, means[nearest], y.mean())
        error = float(((y_val - prediction) ** 2).sum())
        return 1 - error / max(float(((y_val - y.mean()) ** 2).sum()), 1e-30)
    counts = np.zeros((len(groups), int(y.max()) + 1))
    np.add.at(counts, (group, y.astype(np.int64)), 1)
    most_frequent = counts.sum(axis=0).argmax()
    prediction = np.where(is_known, counts.argmax(axis=1)[nearest], most_frequent)
    accuracy, base = (float((guess == y_val).mean()) for guess in (prediction, most_frequent))
    return (accuracy - base) / (1 - base) if base < 1 else 0.0
