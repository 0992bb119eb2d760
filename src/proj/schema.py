"""What data and nets both know: the schema of the data and the form of a batch."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor

from proj.errors import UserError

Task: TypeAlias = Literal["binary", "multiclass", "multilabel", "regression"]
Label: TypeAlias = str | int | float | bool
Tensors: TypeAlias = Tensor | dict[str, Tensor]


class Batch(NamedTuple):
    """Some rows of a data set; a whole split has the same form."""

    x: Tensors  # [rows, ...], or a dict of such tensors for tables
    y: Tensor | None  # [rows] class numbers, [rows, labels] of 0 and 1, or [rows, targets]; None when predicting
    row: Tensor  # [rows], each row's number in its source


@dataclass(frozen=True)
class Schema:
    """What is known of the data, fitted on the training split only. Plain JSON values, every field required.

    ``input_shape`` is the shape of one row of ``x``: ``(features,)`` or ``(channels, height, width)``,
    ``input_type`` is uint8 for pictures and float32 otherwise. ``input_mean`` and
    ``input_std`` have one value a feature, or one a channel; images count as numbers from 0 to 1 there. ``classes`` holds
    the user's own labels in the order of the class numbers (binary: negative, positive), ``class_counts`` how often each
    occurs in the training split (multilabel: the rows that carry the label). ``target_mean`` and ``target_std`` are in
    the target's own units. What does not apply to a task is empty.
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

    def __post_init__(self) -> None:
        for values in asdict(self).values():
            plain = {type(value) for value in (values if isinstance(values, tuple) else (values,))}
            assert plain <= {str, int, float, bool}, f"not plain values: {plain}"  # a checkpoint could not be read again

    @property
    def outputs(self) -> int:
        """How many numbers a net gives for a row."""
        return len(self.classes) if self.task == "multiclass" else len(self.target_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names for per-class results: classes, or labels for multilabel."""
        return self.target_names if self.task == "multilabel" else tuple(str(label) for label in self.classes)

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
            target_names=("target",) if targets == 1 else tuple(f"target_{i}" for i in range(targets)),
            classes=tuple(range(classes)),
            class_counts=(),
            target_mean=(0.0,) * targets if task == "regression" else (),
            target_std=(1.0,) * targets if task == "regression" else (),
            rows=0,
        )

    def to_dict(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Schema":
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        try:
            return cls(**fields)
        except TypeError as error:
            raise UserError(f"the checkpoint's schema is of another version: {error}; train the run again.") from error
