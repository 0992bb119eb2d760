"""Targets of shards: one pass over the target columns counts the classes, or sums the numbers."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from proj.data.tabular.columns import target_column
from proj.data.tabular.files import nameless
from proj.data.tabular.positive import choose_positive
from proj.data.tabular.shards import Block, read_rows, runs_of
from proj.data.tabular.targets import TargetColumn, Targets, infer_task
from proj.errors import UserError
from proj.schema import Array, Finding, Label, Schema, Task

# Rows of the target columns that are read at once.
ROWS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Counts:
    """What is counted of the targets of some rows.

    Attributes:
        rows: rows that have a target.
        classes: how often each class occurs; empty for other tasks.
        mean: mean of each target or label [targets].
        squares: sum of the squared differences from the mean [targets].
        others: values other than 0 and 1.
    """

    rows: int = 0
    classes: Counter[Label] = field(default_factory=Counter)
    mean: Any = 0.0
    squares: Any = 0.0
    others: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        """Return the counts of both sets of rows (Chan, Golub, LeVeque: doi:10.2307/2683386)."""
        if not self.rows or not other.rows:
            return self if self.rows else other
        rows = self.rows + other.rows
        difference = other.mean - self.mean
        squares = self.squares + other.squares
        squares = squares + difference**2 * (self.rows * other.rows / rows)
        mean = self.mean + difference * (other.rows / rows)
        others = self.others + other.others
        return Counts(rows, self.classes + other.classes, mean, squares, others)

    def plain(self) -> list[object]:
        """Return the counts as values that JSON has."""
        classes = sorted((str(label), count) for label, count in self.classes.items())
        return [self.rows, classes, np.asarray(self.mean).tolist()]


@dataclass(frozen=True)
class CountedColumn(TargetColumn):
    """The distinct values of a target column, with the number of rows of each."""

    counts: dict[Label, int] = field(default_factory=dict)

    @property
    def label_counts(self) -> dict[Label, int]:
        return self.counts


class SourceTargets(NamedTuple):
    """The task of a source, what kind of values its targets are, and the counts of each block."""

    task: Task
    columns: tuple[TargetColumn, ...]
    counts: list[Counts]
    where: str


def total(counts: Iterable[Counts]) -> Counts:
    return reduce(Counts.__add__, counts, Counts())


def read_targets(frame: pl.DataFrame, names: list[str], where: str) -> tuple[TargetColumn, ...]:
    """Return the target columns of rows. Text is a class as it is written."""
    return tuple(target_column(name, nameless(frame, name), where) for name in names)


def count_targets(
    blocks: list[Block], names: list[str], task: Task | None, sampled: pl.DataFrame, where: str
) -> SourceTargets:
    """Count the targets of each block; of the columns, only the targets are read.

    Args:
        blocks: all blocks of a source.
        names: the target columns.
        task: the task; None means the one that all values suggest.
        sampled: some rows, whose targets tell what to count.
        where: name of the source, for messages.

    Raises:
        UserError: if the targets do not fit the task.
    """
    present = sampled.drop_nulls(names)
    if not len(present):
        raise UserError(
            f"{where}: column {', '.join(names)}: expected targets, got missing values only."
        )
    columns = read_targets(present, names, where)
    guess = Targets.from_table(columns, task, where)
    counts = list(_count(blocks, names, task or guess.task, task is not None, where))
    if task is None and guess.is_classes:
        # More different numbers than the sample has may make them amounts.
        found = _distinct(columns[0], total(counts).classes)
        if (actual := infer_task((found,), is_table=True)) != guess.task:
            guess = replace(guess, task=actual)
            if not guess.is_classes:
                counts = list(_count(blocks, names, actual, False, where))
    elif task is None and guess.task == "multilabel" and total(counts).others:
        guess = replace(guess, task="regression")
    return SourceTargets(guess.task, columns, counts, where)


def _count(
    blocks: list[Block], names: list[str], task: Task, is_stated: bool, where: str
) -> Iterable[Counts]:
    for joined, indices in runs_of(blocks, ROWS_AT_ONCE):
        frame = read_rows(joined, names)
        for i in indices:
            part = frame.slice(blocks[i].start - joined.start, blocks[i].rows)
            yield _count_rows(part.drop_nulls(), names, task, is_stated, where)


def _count_rows(
    present: pl.DataFrame, names: list[str], task: Task, is_stated: bool, where: str
) -> Counts:
    if not len(present):
        return Counts()
    columns = read_targets(present, names, where)
    if task in ("binary", "multiclass"):
        return Counts(len(present), Counter(columns[0].label_counts))
    # Labels that the sample suggests may be numbers in other rows.
    Targets(columns, task if is_stated else "regression", where, is_table=True).check()
    numbers = np.stack([column.numbers(np.float64) for column in columns], axis=1)
    mean = numbers.mean(axis=0)
    squares = ((numbers - mean) ** 2).sum(axis=0)
    return Counts(len(present), Counter(), mean, squares, int((~np.isin(numbers, (0, 1))).sum()))


def _distinct(column: TargetColumn, counts: Counter[Label]) -> CountedColumn:
    """Return a column of the distinct values that were counted, in ascending order."""
    ordered = dict(sorted(counts.items()))
    words = () if column.is_numeric else tuple(map(str, ordered))
    values = np.array(list(ordered)) if column.is_numeric else np.arange(len(ordered))
    return CountedColumn(column.name, column.kind, values, column.dtype, words, None, ordered)


def fit_targets(targets: SourceTargets, train: Counts, positive: Label | None) -> dict[str, Any]:
    """Return the fields of the schema that describe the targets of the training rows.

    Raises UserError if the targets do not fit the task.
    """
    if targets.task in ("binary", "multiclass"):
        everything, trained = (
            Targets(
                (_distinct(targets.columns[0], counts.classes),), targets.task, targets.where, True
            )
            for counts in (total(targets.counts), train)
        )
        everything.check()
        return trained.fit(choose_positive(everything, positive))
    sample = Targets(targets.columns, targets.task, targets.where, is_table=True)
    fields = sample.fit(choose_positive(sample, positive))
    if targets.task == "multilabel":
        return fields | {
            "class_counts": tuple(np.rint(train.mean * train.rows).astype(int).tolist())
        }
    std = np.sqrt(train.squares / train.rows)
    std[std == 0] = 1.0
    # The sample does not show the limits of all rows.
    fields |= {"target_low": (), "target_high": ()}
    return fields | {"target_mean": tuple(train.mean.tolist()), "target_std": tuple(std.tolist())}


def check_classes(splits: dict[str, Counts], classes: tuple[Label, ...], where: str) -> None:
    """Raise UserError for a class of val or test that the training rows do not have."""
    for name, counts in splits.items():
        unknown = [label for label in counts.classes if label not in classes]
        if unknown:
            raise UserError(
                f"{where}: class {unknown[0]} has no training rows, but "
                f"{counts.classes[unknown[0]]} {name} rows; correct the labels, or split in "
                "another way."
            )


def find_absent_classes(splits: dict[str, Counts], schema: Schema) -> list[Finding]:
    """Return findings about classes without validation rows, or without test rows."""
    findings = []
    for name in ("val", "test"):
        classes = splits[name].classes
        absent = [str(label) for label in schema.classes if label not in classes]
        if splits[name].rows and absent:
            finding = Finding(
                f"no {name} rows of {', '.join(absent[:10])}{', …' * (len(absent) > 10)}",
                "nothing shows how well they are predicted",
                f"name shards with data.{name}_path that have them, or raise data.{name}_fraction",
            )
            findings.append(finding)
    return findings


def find_missing(blocks: list[Block], counts: list[Counts], where: str) -> list[Finding]:
    """Return a finding about rows without a target, with their number."""
    rows, present = sum(block.rows for block in blocks), total(counts).rows
    if rows == present:
        return []
    what = f"{rows - present} of {rows} rows of {where} have no target"
    return [Finding(what, "they are left out", "fill it in, or drop them from the files")]


def encode_targets(frame: pl.DataFrame, names: list[str], schema: Schema, where: str) -> Array:
    """Return the targets of rows that have them, as a loss takes them."""
    columns = read_targets(frame, names, where)
    return Targets(columns, schema.task, where, is_table=True).encode(schema)
