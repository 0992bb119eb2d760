"""What data and nets both know: the schema of the data and the form of a batch."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from mmap import ACCESS_COPY, mmap
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from proj.errors import UserError

Task: TypeAlias = Literal["binary", "multiclass", "multilabel", "regression"]
# How precision, recall, F1 and the areas of several classes or labels become one number.
Average: TypeAlias = Literal["macro", "micro", "weighted"]
Label: TypeAlias = str | int | float | bool
Tensors: TypeAlias = Tensor | dict[str, Tensor]
# A net of several inputs gets each of them as an argument.
Inputs: TypeAlias = Tensors | tuple[Tensor, ...]
Array: TypeAlias = np.ndarray[Any, Any]

SPLITS = ("train", "val", "test")

# Targets of regression, their statistics and all sums. Apple's GPUs have no float64.
SUM_DTYPE = torch.float32 if torch.backends.mps.is_available() else torch.float64

# The probability above which a row is of the positive class, or has a label. A calibration may set
# one for all labels or one for each.
DEFAULT_THRESHOLD = (0.5,)

# Labels of a pair of which one kind is the positive class, in lower case.
POSITIVE = ("yes", "y", "true", "t", "1", "positive", "pos", "+")
NEGATIVE = ("no", "n", "false", "f", "0", "-1", "negative", "neg", "-")


class Batch(NamedTuple):
    """Rows of a data set. A whole split has the same form.

    Attributes:
        x: inputs [rows, ...]; for tables a dict of such tensors, for a net of several inputs a
            tuple of them. A split has one tensor or a dict.
        y: class numbers [rows], labels [rows, labels] of 0 and 1, or targets [rows, targets]; None
            for rows to predict (then a DataLoader needs a ``collate_fn``). In a split, class
            numbers may be uint8.
        row: each row's number in its source [rows].
        weights: each row's weight in loss and metrics [rows], alone in a tuple; empty if all count
            equally. A None would be a row for Lightning when it looks for the batch size.
    """

    x: Tensors
    y: Tensor | None
    row: Tensor
    weights: tuple[Tensor, ...] = ()

    @property
    def weight(self) -> Tensor | None:
        return self.weights[0] if self.weights else None


class Finding(NamedTuple):
    """A problem of a data set, its effect on the result, and what to change."""

    what: str
    effect: str
    remedy: str
    column: str | None = None  # the column of the source that the finding is about

    def __str__(self) -> str:
        return f"{self.what}: {self.effect}; {self.remedy}."


class Execution(NamedTuple):
    """Consecutive training batches in one piece, for several optimizer steps in one
    ``training_step`` (Keras calls that ``steps_per_execution``).
    """

    rows: Batch
    batch_size: int

    def batches(self) -> list[Batch]:
        """Return the batches; the last one may have fewer than ``batch_size`` rows."""
        x, y, row, weights = self.rows

        def chunks(values: Tensor | None) -> Iterable[Any]:
            return repeat(None) if values is None else torch.split(values, self.batch_size)

        if isinstance(x, dict):
            columns = zip(*map(chunks, x.values()), strict=True)
            xs: Iterable[Tensors] = (dict(zip(x, values, strict=True)) for values in columns)
        else:
            xs = chunks(x)
        each: Iterable[Any] = zip(*map(chunks, weights), strict=True) if weights else repeat(())
        return [Batch(*values) for values in zip(xs, chunks(y), chunks(row), each, strict=False)]


@dataclass(frozen=True)
class Column:
    """How one input of a net is computed from a column of a table; fitted on the training split.

    Attributes:
        source: name of the column in the table.
        type: type of the values in the table.
        kind: what the input is. A date has several: days since 1970, month, …; so has a text.
        missing: whether values are missing in the training split.
        edges: for numbers, quantiles in ascending order. The net normalizes by them.
        shares: for numbers, the share of training values below each edge, ties counted half.
        categories: the known ones are 2, 3, …; a missing value is 0, and a rare or unseen one is 1.
            Of a word, the word or pair; of a score, what it predicts and arguments of TextModel.
        format: how numbers or dates are written in text, or which dates numbers are.
        placeholders: words among numbers or dates in training that count as missing.
        center: subtracted from numbers before float32 rounds them; ``edges`` are differences.
    """

    source: str
    type: Literal["number", "text", "boolean", "date"]
    kind: Literal[
        "number", "category", "days", "month", "weekday", "hour", "length", "word", "score"
    ]
    missing: bool
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    categories: tuple[str, ...]
    format: str = ""
    placeholders: tuple[str, ...] = ()
    center: float = 0.0

    @property
    def name(self) -> str:
        forms = {"word": "'{}'", "score": "score {}"}
        part = forms.get(self.kind, self.kind).format(*self.categories[:1])
        return self.source if part in ("number", "category", "days") else f"{self.source}.{part}"


@dataclass(frozen=True)
class Schema:
    """What is known of the data after fitting on the training split. All values are plain JSON.

    ``Schema.of`` and ``Schema.from_dataset`` make one for a data module of your own.

    Attributes:
        task: what the targets are.
        input_shape: shape of one row of ``x``: (features,), (channels, height, width), …
        input_type: uint8 for images, table for tables, float32 for other arrays; may be empty.
        input_names: names of features or channels; may be empty.
        input_mean: mean of each feature or channel. Images count as numbers from 0 to 1.
        input_std: standard deviation of each feature or channel.
        target_names: names of the targets, or of the labels.
        classes: the user's own labels by class number; of two classes the second is the positive.
        class_counts: training rows of each class, or with each label; empty if not known.
        target_mean, target_std: mean and standard deviation of each regression target, in its unit.
        target_low, target_high: limits of each regression target, or ±1.8e308; empty without any.
        rows: training rows; 0 if not known.
        columns: inputs of a table. ``x`` is then a dict of ``numeric`` [rows, numbers] and
            ``categorical`` [rows, categories], both in this order.
        target_columns: how the targets of a table are read.
        net_config: architecture of a net from a folder, as JSON, once it is built; else empty.
        linear: a linear model of a small table, as data/tabular/linear.py fits it; may be empty.
        weight_mean: mean weight of the training rows; 0 for rows without weights.
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
    target_columns: tuple[Column, ...] = ()
    target_low: tuple[float, ...] = ()
    target_high: tuple[float, ...] = ()
    net_config: str = ""
    linear: tuple[tuple[float, ...], ...] = ()
    weight_mean: float = 0.0

    def __post_init__(self) -> None:
        # A checkpoint holds the schema and is read with weights_only=True.
        for leaf in _leaves(asdict(self)):
            if type(leaf) not in (str, int, float, bool):
                raise TypeError(f"expected plain values in a schema, got {leaf!r}")

    def _check_statistics(self) -> None:
        """Raise TypeError for statistics that do not fit the names, as in a damaged checkpoint."""
        names = () if self.task == "regression" else self.class_names
        if len(self.class_counts) not in (0, len(names)):
            raise TypeError(f"{len(self.class_counts)} class_counts for {len(names)} classes")
        statistics = ("input_mean", "input_std", "target_mean", "target_std")
        for name in (*statistics, "target_low", "target_high"):
            if not all(type(value) in (int, float) for value in getattr(self, name)):
                raise TypeError(f"expected numbers in {name}, got {getattr(self, name)!r:.60}")
        if type(self.net_config) is not str:
            raise TypeError(f"expected a text in net_config, got {self.net_config!r:.60}")

    @property
    def numeric(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.kind != "category")

    @property
    def categorical(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.kind == "category")

    @property
    def num_features(self) -> int:
        """Numbers in one flattened row of ``x``."""
        return math.prod(self.input_shape)

    @property
    def num_outputs(self) -> int:
        """Outputs of a net for one row: 1 for two classes, else one for each class or target."""
        return len(self.classes) if self.task == "multiclass" else len(self.target_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names for results of single classes or labels."""
        labels = self.target_names if self.task == "multilabel" else self.classes
        return tuple(str(label) for label in labels)

    @classmethod
    def of(
        cls,
        inputs: int | Sequence[int],
        *,
        classes: Iterable[Label] = (),
        labels: Iterable[str] = (),
        targets: Iterable[str] = (),
        task: Task | None = None,
    ) -> "Schema":
        """Return a schema without statistics, for a data module of your own.

        Args:
            inputs: features of a row, or the shape of one.
            classes: the classes by class number; two of them are a binary task by default.
            labels: names of labels, any number of which a row may have.
            targets: names of the numbers to predict.
            task: multiclass for two classes with an output of the net for each.

        Raises:
            UserError: not exactly one of classes, labels and targets is given.

        >>> Schema.of(4, classes=["ok", "worn", "broken"]).task
        'multiclass'
        """
        classes, labels, targets = tuple(classes), tuple(labels), tuple(targets)
        if sum(map(bool, (classes, labels, targets))) != 1 or len(classes) == 1:
            raise UserError(
                "Schema: expected two or more classes, or labels, or targets, got "
                f"classes={list(classes)}, labels={list(labels)}, targets={list(targets)}; "
                "give one of the three."
            )
        shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
        default: Task = "multilabel" if labels else "regression"
        if classes:
            default = "binary" if len(classes) == 2 else "multiclass"
        return cls(
            task=task or default,
            input_shape=shape,
            input_type="",
            input_names=(),
            input_mean=(0.0,) * shape[0],
            input_std=(1.0,) * shape[0],
            target_names=labels or targets or ("target",),
            classes=classes,
            class_counts=(),
            target_mean=(0.0,) * len(targets),
            target_std=(1.0,) * len(targets),
            rows=0,
            columns=(),
        )

    @classmethod
    def from_dataset(
        cls,
        dataset: "Dataset[Any]",
        *,
        classes: Iterable[Label] = (),
        labels: Iterable[str] = (),
        targets: Iterable[str] = (),
    ) -> "Schema":
        """Return the schema of a training set of ``(x, y)``, with its statistics.

        Reads the whole set once. Without names, whole numbers ``y`` are classes 0, 1, … and other
        numbers are targets. Arguments and errors are those of ``Schema.of``.
        """
        batches = [(x, y) for x, y in DataLoader(dataset, 1024, generator=torch.Generator())]
        y = torch.cat([y for _, y in batches]).reshape(sum(len(y) for _, y in batches), -1)
        if not (classes or labels or targets):
            if y.is_floating_point():
                targets = [f"target_{i}" for i in range(y.shape[1])]
            else:
                classes = range(max(2, int(y.max()) + 1))
        example = batches[0][0]
        schema = cls.of(example.shape[1:], classes=classes, labels=labels, targets=targets)
        if schema.classes and not 0 <= int(y.min()) <= int(y.max()) < len(schema.classes):
            raise UserError(
                f"Schema: expected class numbers from 0 to {len(schema.classes) - 1} in y, got "
                f"{int(y.min())} to {int(y.max())}; name all classes in the order of the numbers."
            )
        mean, std = mean_and_std([x.numpy() for x, _ in batches])
        counts: tuple[int, ...] = ()
        if schema.task == "multilabel":
            counts = tuple(int(count) for count in y.sum(dim=0))
        elif schema.classes:
            counts = tuple(y.flatten().long().bincount(minlength=len(schema.classes)).tolist())
        fields: dict[str, Any] = {"input_mean": mean, "input_std": std, "class_counts": counts}
        if schema.task == "regression":
            fields["target_mean"], fields["target_std"] = mean_and_std([y.numpy()])
        input_type = str(example.dtype).removeprefix("torch.")
        return replace(schema, input_type=input_type, rows=len(y), **fields)

    def to_dict(self) -> dict[str, Any]:
        return dict(json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Schema":
        try:
            # Older checkpoints have no target_columns.
            columns, target_columns = (
                tuple(Column(**_tuples(column)) for column in part)
                for part in (values["columns"], values.get("target_columns", []))
            )
            fields = {**_tuples(values), "columns": columns, "target_columns": target_columns}
            fields["linear"] = tuple(map(tuple, values.get("linear", ())))
            schema = cls(**fields)
            schema._check_statistics()
            return schema
        except (TypeError, KeyError) as error:
            raise UserError(
                f"expected a checkpoint whose schema has this version's fields, got {error}; train "
                "the run again."
            ) from error


def is_pair(positive: Label, negative: Label) -> bool:
    """Return whether two labels say themselves which one is the positive class."""
    return label_word(positive) in POSITIVE and label_word(negative) in NEGATIVE


def label_word(label: Label) -> str:
    """Return a label as a word in lower case. The numbers 1 and 1.0 are one word."""
    is_whole = isinstance(label, float) and label.is_integer()
    return str(int(label) if is_whole else label).strip().lower()


def empty_pages(length: int, dtype: torch.dtype) -> Tensor:
    """Return an empty tensor [length] that is not part of the heap, which keeps freed memory."""
    pages = mmap(-1, max(1, length) * dtype.itemsize, access=ACCESS_COPY)
    return torch.frombuffer(pages, dtype=dtype)[:length]


def mean_and_std(chunks: list[Array]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation over all axes but the second, in float64.

    ``chunks`` are consecutive rows. uint8 images count as numbers from 0 to 1, and a constant
    feature or channel has the standard deviation 1.
    """
    axes = (0, *range(2, chunks[0].ndim))
    scale = 255.0 if chunks[0].dtype == np.uint8 else 1.0
    count = sum(chunk.size for chunk in chunks) / chunks[0].shape[1]
    mean = sum(chunk.sum(axis=axes, dtype=np.float64) for chunk in chunks) / count
    centered = (chunk - mean.reshape(-1, *[1] * (len(axes) - 1)) for chunk in chunks)
    std = np.sqrt(sum(np.square(chunk).sum(axis=axes) for chunk in centered) / count)
    std[std == 0] = scale
    return tuple((mean / scale).tolist()), tuple((std / scale).tolist())


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
