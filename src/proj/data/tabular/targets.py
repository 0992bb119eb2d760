"""Targets of arrays and of tables: infer the task, fit the classes or statistics, and encode.

A source describes each target as a ``TargetColumn``; from there on arrays and tables are alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from proj.errors import MAX_QUOTED, UserError, quoted
from proj.schema import SUM_DTYPE, Array, Label, Schema, Task

# A table's column of more different whole numbers holds amounts, unless data.task says otherwise.
MAX_NUMBER_CLASSES = 20

# Listed in a message. Of more classes it names the first and the last.
MAX_LISTED_CLASSES = 12

# Values whose class numbers are computed at once.
CHUNK = 2**16
# So many training rows, and at least this share, have a number that is a limit of the target.
LIMIT_ROWS, LIMIT_SHARE = 10, 0.01
NO_LIMIT = float(np.finfo(np.float64).max)  # not infinite, because a schema is plain JSON

MISSING, UNKNOWN = -1, -2  # class numbers of a missing target, and of a label without a class


@dataclass(frozen=True)
class TargetColumn:
    """One target of each row.

    ``values`` [rows] holds numbers, booleans, or positions in ``words``, the ascending distinct
    texts of a column of text or dates. ``missing`` [rows] marks rows without a target; a source
    that allows none has None. ``dtype`` is the type in the source, for messages.
    """

    name: str
    kind: Literal["number", "boolean", "text", "date"]
    values: Array
    dtype: str
    words: tuple[str, ...] = ()
    missing: Array | None = None

    @property
    def is_numeric(self) -> bool:
        return self.kind in ("number", "boolean")

    @property
    def present(self) -> Array:
        """The values of rows that have a target."""
        return self.values if self.missing is None else self.values[~self.missing]

    @property
    def is_zero_one(self) -> bool:
        return bool(np.isin(self.present, (0, 1)).all())

    def label(self, row: int) -> Label:
        """Return the target of a row as the user wrote it."""
        value: Label = self.values[row].item()
        return self.words[int(value)] if self.words else value

    @cached_property
    def label_counts(self) -> dict[Label, int]:
        """How often each distinct target occurs, in ascending order of the targets."""
        values, counts = _unique_counts(self.present)
        labels = values.tolist() if self.is_numeric else [self.words[i] for i in values]
        return dict(zip(labels, counts.tolist(), strict=True))

    def take(self, rows: Array) -> "TargetColumn":
        """Return the targets of some rows, in ascending order."""
        if len(rows) == len(self.values):
            return self
        missing = None if self.missing is None else self.missing[rows]
        return replace(self, values=self.values[rows], missing=missing)

    def numbers(self, dtype: type[np.floating[Any]]) -> Array:
        """Return the values [rows] as floats, NaN where missing; not a copy if they are that."""
        numbers = self.values.astype(dtype, copy=self.missing is not None)
        if self.missing is not None:
            numbers[self.missing] = np.nan
        return numbers


@dataclass(frozen=True)
class Targets:
    """The targets of some rows of a source, with their task.

    ``where`` names the source in messages. ``is_table`` tells which rules apply: a number in an
    array has a type that its writer chose, a number in a text file does not.
    """

    columns: tuple[TargetColumn, ...]
    task: Task
    where: str
    is_table: bool

    @classmethod
    def from_array(
        cls, y: Array, task: Task | None, names: tuple[str, ...], where: str
    ) -> "Targets":
        """Return the targets in ``y`` [rows] or [rows, targets] of numbers, booleans or text.

        ``task`` None means the task that the values suggest.
        """
        if y.ndim not in (1, 2) or y.dtype.kind not in "biufU":
            raise UserError(
                f"{where}: expected targets of shape [rows] or [rows, targets] that are numbers or "
                f"text, got {y.dtype} of shape {y.shape}."
            )
        y = y[:, None] if y.ndim == 1 else y
        if len(names) != y.shape[1]:
            several = tuple(f"target_{i}" for i in range(y.shape[1]))
            names = ("target",) if y.shape[1] == 1 else several
        columns = tuple(_array_column(name, y[:, i]) for i, name in enumerate(names))
        return cls(columns, task or infer_task(columns, is_table=False), where, is_table=False)

    @classmethod
    def from_table(
        cls, columns: tuple[TargetColumn, ...], task: Task | None, where: str
    ) -> "Targets":
        """Return the targets in columns of a table; ``task`` None means what they suggest."""
        return cls(columns, task or infer_task(columns, is_table=True), where, is_table=True)

    @property
    def is_classes(self) -> bool:
        return self.task in ("binary", "multiclass")

    @property
    def missing(self) -> Array:
        """Whether any target is missing: [rows]."""
        missing = np.zeros(len(self.columns[0].values), bool)
        for column in self.columns:
            missing |= False if column.missing is None else column.missing
        return missing

    @property
    def strata(self) -> Array | None:
        """A class number for each row to stratify a split by: [rows]; None without classes."""
        if not self.is_classes:
            return None
        column, names = self.columns[0], self.class_names
        # Splitting sorts the class numbers, which is faster with 32 bits.
        codes = np.empty(len(column.values), np.uint32)
        for part in _chunks(len(codes)):
            values = column.values[part]
            codes[part] = values if column.words else np.searchsorted(names, values)
        return codes

    @property
    def class_names(self) -> tuple[Label, ...]:
        """The labels of the class numbers in ``strata``."""
        column = self.columns[0]
        return () if not self.is_classes else column.words or tuple(column.label_counts)

    def take(self, rows: Array) -> "Targets":
        """Return the targets of some rows, in ascending order."""
        return replace(self, columns=tuple(column.take(rows) for column in self.columns))

    def check(self) -> None:
        """Raise UserError if the targets do not fit the task."""
        column, num_columns = self.columns[0], len(self.columns)
        if not self.is_classes:
            if self.task == "multilabel" and num_columns == 1 and not self.is_table:
                raise UserError(
                    f"{self.where}: expected two columns or more of 0 and 1 for the task "
                    f"multilabel, got 1 column of {column.dtype}; set data.task."
                )
            self._check_numbers()
            return
        labels = list(column.label_counts)
        got = f"{len(labels)} ({', '.join(str(label)[:MAX_QUOTED] for label in labels[:5])})"
        if num_columns == 1 and len(labels) > 1 and (self.task == "multiclass" or len(labels) == 2):
            return
        raise UserError(
            f"{self.where}: column {column.name}: expected "
            f"{'two classes' if self.task == 'binary' else 'two classes or more'} for the task "
            f"{self.task}, got {got if num_columns == 1 else f'{num_columns} columns'}; set "
            "data.target or data.task."
        )

    def fit(self, positive: Label | None = None) -> dict[str, Any]:
        """Return the fields of the schema that describe the targets, from these rows.

        The class ``positive`` is the last one; None keeps the ascending order.
        Raises UserError if the targets do not fit the task.
        """
        self.check()
        fields: dict[str, Any] = {
            "task": self.task,
            "target_names": tuple(column.name for column in self.columns),
        }
        fields |= dict.fromkeys(("classes", "class_counts", "target_mean", "target_std"), ())
        fields |= {"target_low": (), "target_high": ()}
        if self.is_classes:
            counts = self.columns[0].label_counts
            classes = sorted(counts, key=lambda label: label == positive)
            class_counts = tuple(counts[label] for label in classes)
            return fields | {"classes": tuple(classes), "class_counts": class_counts}
        numbers = [column.numbers(np.float64) for column in self.columns]
        # The memory layout decides the last bit of a sum. Recorded runs have these layouts.
        y = np.stack(numbers).T if self.is_table else _as_columns(numbers)
        if self.task == "multilabel":
            return fields | {"class_counts": tuple(y.sum(axis=0).astype(int).tolist())}
        std = y.std(axis=0)
        std[std == 0] = 1.0
        return fields | {
            "target_mean": tuple(y.mean(axis=0).tolist()),
            "target_std": tuple(std.tolist()),
            **_limits(y),
        }

    def encode(self, schema: Schema, split: str = "", rows: Array | None = None) -> Array:
        """Return the targets as a loss takes them.

        Classes are numbers [rows] int64, -1 where missing. Labels are 0 and 1 [rows, labels]
        float32, targets are numbers [rows, targets] float64, NaN where missing. ``split`` and
        ``rows``, the rows' numbers in the source, are for messages. Raises UserError for targets
        that do not fit the schema, such as a label that the training split does not have.
        """
        if schema.task != self.task:
            raise UserError(
                f"{self.where}: expected targets for the task {schema.task}, as in training, "
                f"got {self.task}."
            )
        if len(self.columns) != (1 if self.is_classes else len(schema.target_names)):
            raise UserError(
                f"{self.where}: expected {len(schema.target_names)} targets per row, as in "
                f"training, got {len(self.columns)} columns."
            )
        if not self.is_classes:
            self._check_numbers(rows)
            exact = self.task == "regression" and torch.float64 == SUM_DTYPE
            dtype = np.float64 if exact else np.float32
            return _as_columns([column.numbers(dtype) for column in self.columns])
        codes = self._class_numbers(schema)
        if len(unknown := np.flatnonzero(codes == UNKNOWN)):
            raise self.unknown_class(unknown, schema.classes, split, rows)
        return codes

    def _class_numbers(self, schema: Schema) -> Array:
        """Return the number of each row's class: [rows] int64, MISSING or UNKNOWN."""
        column, classes = self.columns[0], np.asarray(schema.classes)
        kind = {"U": "text", "b": "boolean"}.get(classes.dtype.kind, "number")
        column_kind = column.kind if column.is_numeric else "text"
        # An array of 0 and 1 may be boolean in one file and integer in another.
        alike = {"boolean", "number"} if not self.is_table else set()
        if column_kind != kind and not {column_kind, kind} <= alike and len(column.present):
            row = 0 if column.missing is None else int(np.argmin(column.missing))
            raise UserError(
                f"{self.where}: column {column.name}: expected labels such as "
                f"{schema.classes[0]!r}, as in training, got {quoted(column.label(row))}."
            )
        if kind == "text":
            numbers = {label: number for number, label in enumerate(schema.classes)}
            lookup = np.array([numbers.get(word, UNKNOWN) for word in column.words], np.int64)
            codes = lookup[column.values] if len(lookup) else np.full(len(column.values), MISSING)
        else:
            codes = _places(classes, column.values)
        if column.missing is not None:
            codes = codes.copy() if codes is column.values else codes
            codes[column.missing] = MISSING
        return codes.astype(np.int64, copy=False)

    def unknown_class(
        self, unknown: Array, known: tuple[Label, ...], split: str, rows: Array | None = None
    ) -> UserError:
        """Return the error for rows whose class the training split does not have."""
        first, column = unknown[0], self.columns[0]
        same = unknown[column.values[unknown] == column.values[first]]
        noun = f"{split} row{'s' * (len(same) > 1)}".lstrip()
        return UserError(
            f"{self.where}: class {quoted(column.label(first))} has no training rows, but "
            f"{len(same)} {noun}, such as row {first if rows is None else rows[first]}; training "
            f"has {listed(known)}; correct the labels, drop the rows, or split in another way."
        )

    def _check_numbers(self, rows: Array | None = None) -> None:
        for column in self.columns:
            where = f"{self.where}: column {column.name}"
            if not column.is_numeric:
                example = f", such as {quoted(column.words[0])}" if column.words else ""
                raise UserError(
                    f"{where}: expected numbers for the task {self.task}, got {column.dtype}"
                    f"{example}; set data.target or data.task."
                )
            if not len(column.present) and len(column.values):
                raise UserError(f"{where}: expected targets, got missing values only.")
            finite = np.isfinite(column.values)
            if column.missing is not None:
                finite |= column.missing
            if not finite.all():
                i = int(finite.argmin())
                raise UserError(
                    f"{where}: expected finite targets, got {column.values[i]} in row "
                    f"{i if rows is None else rows[i]}; correct it, or leave the row out."
                )
            if self.task == "multilabel" and not column.is_zero_one:
                raise UserError(
                    f"{where}: expected 0 and 1 only for the task multilabel; set data.task."
                )


def _limits(y: Array) -> dict[str, tuple[float, ...]]:
    """Return the schema's limits of targets [rows, targets]; no fields if no target has one."""
    low = tuple(_low_limit(column) for column in y.T)
    high = tuple(-_low_limit(-column) for column in y.T)
    has_limit = set(low) != {-NO_LIMIT} or set(high) != {NO_LIMIT}
    return {"target_low": low, "target_high": high} if has_limit else {}


def _low_limit(values: Array) -> float:
    """Return the smallest of the values [rows] if it is a limit.

    It is one if many rows have it, and more than the next value: 0 of sales per day, or the highest
    number of a survey that cuts higher ones off. The largest of counted numbers is rare.
    """
    is_smallest = values == values.min()
    count, others = np.count_nonzero(is_smallest), values[~is_smallest]
    next_count = np.count_nonzero(others == others.min()) if len(others) else 0
    is_limit = count >= max(LIMIT_ROWS, LIMIT_SHARE * len(values)) and count > next_count
    return float(values.min()) if is_limit else -NO_LIMIT


def infer_task(columns: tuple[TargetColumn, ...], is_table: bool) -> Task:
    """Return the task that the targets suggest.

    Several columns of 0 and 1 are labels, other columns are numbers to predict. A single column is
    classes unless it holds amounts. In an array these are floats other than 0 and 1. In a table
    they are dates, numbers that are not whole, and more than ``MAX_NUMBER_CLASSES`` different
    numbers.
    """
    if len(columns) > 1:
        zero_one = all(c.is_numeric and c.is_zero_one for c in columns)
        return "multilabel" if zero_one else "regression"
    (column,) = columns
    if column.kind == "date":
        return "regression"
    if column.values.dtype.kind == "f":
        is_whole = bool((column.present == np.floor(column.present)).all())
        if not (is_whole if is_table else column.is_zero_one):
            return "regression"
    distinct = len(column.label_counts)
    if is_table and column.kind == "number" and distinct > MAX_NUMBER_CLASSES:
        return "regression"
    return "binary" if distinct == 2 else "multiclass"


def _chunks(rows: int) -> Iterator[slice]:
    """Yield the parts of an array that are computed at once, so that they take little memory."""
    return (slice(start, start + CHUNK) for start in range(0, rows, CHUNK))


def _unique_counts(values: Array) -> tuple[Array, Array]:
    """Return the distinct values in ascending order, and how often each occurs."""
    parts = [np.unique(values[part], return_counts=True) for part in _chunks(len(values))]
    if len(parts) < 2:
        return parts[0] if parts else np.unique(values, return_counts=True)
    distinct, place = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    counts = np.zeros(len(distinct), np.int64)
    np.add.at(counts, place, np.concatenate([part[1] for part in parts]))
    return distinct, counts


def _as_columns(columns: list[Array]) -> Array:
    """Return columns [rows] as an array [rows, columns], a single one without a copy."""
    if len(columns) == 1 and columns[0].flags.c_contiguous:
        return columns[0][:, None]
    return np.column_stack(columns)


def _places(classes: Array, values: Array) -> Array:
    """Return the position in ``classes`` of each value [rows] int64, UNKNOWN for any other.

    Values that are such positions themselves are returned as they are, not as a copy.
    """
    order, codes = np.argsort(classes), values if values.dtype == np.int64 else None
    for part in _chunks(len(values)):
        chunk = values[part]
        places = np.searchsorted(classes, chunk, sorter=order).clip(max=len(order) - 1)
        found = np.where(classes[order[places]] == chunk, order[places], UNKNOWN)
        if codes is values and (found != chunk).any():
            codes = values.copy()
        elif codes is None:
            codes = np.empty(len(values), np.int64)
        if codes is not values:
            codes[part] = found
    return np.empty(0, np.int64) if codes is None else codes


def _array_column(name: str, y: Array) -> TargetColumn:
    if y.dtype.kind == "U":
        words, positions = np.unique(y, return_inverse=True)
        return TargetColumn(name, "text", positions, "text", tuple(words.tolist()))
    return TargetColumn(name, "boolean" if y.dtype.kind == "b" else "number", y, str(y.dtype))


def listed(labels: tuple[Label, ...]) -> str:
    """Return the names of some classes for a message."""
    names = [quoted(label) for label in labels]
    if len(names) <= MAX_LISTED_CLASSES:
        return ", ".join(names)
    return f"{len(names)} classes from {names[0]} to {names[-1]}"
