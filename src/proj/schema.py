"""What data and nets both know: the schema of the data and the form of a batch."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from proj.errors import UserError

Task: TypeAlias = Literal["binary", "multiclass", "multilabel", "regression"]
Label: TypeAlias = str | int | float | bool
SPLITS = ("train", "val", "test")
DEFAULT_THRESHOLD = (
    0.5,
)  # the threshold of the positive class, or of every label, where none was fitted
Tensors: TypeAlias = Tensor | dict[str, Tensor]
Array: TypeAlias = np.ndarray[Any, Any]


class Batch(NamedTuple):
    """Some rows of a data set; a whole split has the same form."""

    x: Tensors  # [rows, ...], or a dict of such tensors for tables
    y: (
        Tensor | None
    )  # [rows] class numbers, [rows, labels] of 0 and 1, or [rows, targets]; None when predicting
    row: Tensor  # [rows], each row's number in its source


class Execution(NamedTuple):
    """Consecutive training batches in one piece, for several optimizer steps in one ``training_step``."""

    rows: Batch
    batch_size: int

    def batches(self) -> list[Batch]:
        """The batches, each of ``batch_size`` rows but perhaps the last."""
        x, y, row = self.rows

        def parts(values: Tensor) -> Iterable[Tensor]:
            return torch.split(values, self.batch_size)

        xs: Iterable[Tensors] = (
            (
                dict(zip(x, columns, strict=True))
                for columns in zip(*map(parts, x.values()), strict=True)
            )
            if isinstance(x, dict)
            else parts(x)
        )
        ys = repeat(None) if y is None else parts(y)
        return [Batch(*of) for of in zip(xs, ys, parts(row), strict=False)]


@dataclass(frozen=True)
class Column:
    """How one input of the net comes from a column of a table, fitted on the training split only.

    Numbers stay as they are, NaN where missing; the net normalises them by ``edges``, some of the numbers in ascending
    order, and ``shares``, how many of all numbers are below each (and half of its equals). Categories become numbers: 0
    missing, 1 another one than ``categories`` (rare or never seen), then ``categories`` in their order. Of a date there
    are several inputs, one a kind: days since 1970, month, weekday, hour.
    """

    source: str
    type: Literal["number", "text", "boolean", "date"]  # of the source's values
    kind: Literal["number", "category", "days", "month", "weekday", "hour"]
    missing: bool  # whether a value is missing in the training split
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    categories: tuple[str, ...]

    @property
    def name(self) -> str:
        return (
            self.source
            if self.kind in ("number", "category", "days")
            else f"{self.source}.{self.kind}"
        )


@dataclass(frozen=True)
class Schema:
    """What is known of the data, fitted on the training split only. Plain JSON values, every field required.

    ``input_shape`` is the shape of one row of ``x``: ``(features,)`` or ``(channels, height, width)``, and ``input_type``
    is uint8 for pictures, float32 for other arrays. Of a table, ``x`` has two parts, ``numeric`` [rows, numbers] and
    ``categorical`` [rows, categories], in the order of ``columns``. ``input_mean`` and ``input_std`` have one value a
    feature, or one a channel; images count as numbers from 0 to 1 there. ``classes`` holds the user's own labels in the
    order of the class numbers (binary: negative, positive), ``class_counts`` how often each occurs in the training split
    (multilabel: the rows that carry the label). ``target_mean`` and ``target_std`` are in the target's own units. What
    does not apply to a task is empty.
    """

    task: Task
    input_shape: tuple[int, ...]
    input_type: str
    input_names: tuple[str, ...]
    input_mean: tuple[float, ...]
    input_std: tuple[float, ...]
    target_names: tuple[str, ...]
    classes: tuple[Label, ...]
    class_counts: tuple[int, ...]
    target_mean: tuple[float, ...]
    target_std: tuple[float, ...]
    rows: int
    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        plain = {type(leaf) for leaf in _leaves(asdict(self))}
        assert plain <= {str, int, float, bool}, (
            f"not plain values: {plain}"
        )  # a checkpoint could not be read again

    @property
    def numeric(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.kind != "category")

    @property
    def categorical(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.kind == "category")

    @property
    def text_sources(self) -> list[str]:
        """Columns of a table that are text, even where all of it looks like numbers."""
        return [column.source for column in self.columns if column.type == "text"]

    @property
    def num_outputs(self) -> int:
        """How many numbers a net gives for a row."""
        return len(self.classes) if self.task == "multiclass" else len(self.target_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names for per-class results: classes, or labels for multilabel."""
        return (
            self.target_names
            if self.task == "multilabel"
            else tuple(str(label) for label in self.classes)
        )

    @classmethod
    def without_statistics(cls, task: Task, input_shape: tuple[int, ...], outputs: int) -> "Schema":
        """What can be known of data that come without a schema: shapes, and classes by their numbers."""
        classes = {"binary": 2, "multiclass": outputs}.get(task, 0)
        targets = 1 if classes else outputs
        return cls(
            task=task,
            input_shape=input_shape,
            input_type="",
            input_names=(),
            input_mean=(),
            input_std=(),
            target_names=("target",)
            if targets == 1
            else tuple(f"target_{i}" for i in range(targets)),
            classes=tuple(range(classes)),
            class_counts=(),
            target_mean=(0.0,) * targets if task == "regression" else (),
            target_std=(1.0,) * targets if task == "regression" else (),
            rows=0,
            columns=(),
        )

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Schema":
        try:
            columns = tuple(Column(**_tuples(column)) for column in values["columns"])
            return cls(**{**_tuples(values), "columns": columns})
        except (TypeError, KeyError) as error:
            raise UserError(
                f"the checkpoint's schema is of another version: {error}; train the run again."
            ) from error


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }


def _leaves(values: Any) -> Iterator[Any]:
    if isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _leaves(value)
    else:
        yield values
