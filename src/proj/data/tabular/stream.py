"""Data module for tables larger than memory: Parquet shards, read while the net is trained."""

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from proj.data.base import DataModule
from proj.data.loader import ArrayLoader, nbytes, take
from proj.data.tabular.datamodule import Tabular
from proj.data.tabular.description import describe, plain_values
from proj.data.tabular.files import check_names
from proj.data.tabular.memory import memory_limit
from proj.data.tabular.overrides import OverrideKind, StatedColumn, parse_overrides
from proj.data.tabular.positive import check_positive
from proj.data.tabular.shards import (
    BLOCK_ROWS,
    Block,
    Shard,
    check_columns,
    cut,
    describe_content,
    find_partitions,
    gather,
    hold_out,
    list_shards,
    read_rows,
    runs_of,
    sample,
    with_counts,
)
from proj.data.tabular.stream_loader import StreamLoader, concatenate
from proj.data.tabular.stream_schema import encode_rows, fit_schema
from proj.data.tabular.stream_targets import (
    Counts,
    SourceTargets,
    check_classes,
    count_targets,
    find_absent_classes,
    find_missing,
    fit_targets,
    total,
)
from proj.errors import UserError
from proj.schema import SPLITS, Batch, Finding, Label, Schema, Task

# Rows of each split that are kept in memory, for checks and measurements.
EXAMPLE_ROWS = 4_096
# Blocks that samples are taken from.
SAMPLE_BLOCKS, EXAMPLE_BLOCKS = 64, 8
# Rows of the targets' sample: it tells their task, and a pass over all rows confirms it.
TARGET_ROWS = 10_000


class ParquetStream(DataModule):
    """A table in Parquet files (shards) of any size, of which a bounded part is in memory.

    The shards are cut into blocks of at most 32,768 rows. Training reads the blocks in a random
    order into a buffer, whose rows are shuffled. Columns have the types of the files: text is not
    read as numbers or dates. The columns' statistics are those of a sample of the training rows;
    classes and the statistics of the targets are counted over all of them.

    Args:
        path: a folder, a glob or a file of Parquet shards, also on a server: s3://BUCKET/FOLDER.
            The variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL
            of the environment give access.
        target: the column to predict, or a list of columns.
        val_path: shards whose rows are the validation split; null holds blocks of ``path`` out.
        test_path: shards whose rows are the test split; null holds blocks of ``path`` out.
        predict_path: shards for ``predict``, without targets; null means the test split.
        task: the task of the targets; null infers it, as for a table in memory.
        positive: the positive class of two; null means yes, true or 1 against no, false or 0, else
            the rarer class.
        columns: the kind of a column, if the inferred one is wrong: number, category, date, text,
            or drop to leave it out.
        batch_size: rows per batch and device.
        val_fraction: share of the rows in the blocks for validation, without ``val_path``.
        test_fraction: share of the rows in the blocks for ``test``, without ``test_path``.
        split_seed: seed of the choice of these blocks.
        shuffle: whether the training rows get a new order in each epoch.
        buffer_rows: rows that are shuffled at once. Two such buffers are in memory, encoded: four
            bytes for each row and input.
        sample_rows: training rows that the columns are fitted on.
    """

    # Splits hold some rows only, so what needs a whole split cannot be computed.
    is_streamed = True

    def __init__(
        self,
        path: str,
        target: str | list[str],
        val_path: str | None = None,
        test_path: str | None = None,
        predict_path: str | None = None,
        task: Task | None = None,
        positive: Label | None = None,
        columns: dict[str, OverrideKind | StatedColumn] | None = None,
        batch_size: int = 1024,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        shuffle: bool = True,
        buffer_rows: int = 524_288,
        sample_rows: int = 200_000,
    ) -> None:
        super().__init__(batch_size, shuffle, predict_path)
        self.path, self.val_path, self.test_path = path, val_path, test_path
        self.targets = [target] if isinstance(target, str) else target
        self.task, self.positive, self.columns = task, positive, parse_overrides(columns)
        self.val_fraction = 0.0 if val_path else val_fraction
        self.test_fraction = 0.0 if test_path else test_fraction
        self.split_seed, self.buffer_rows, self.sample_rows = split_seed, buffer_rows, sample_rows
        self.blocks: dict[str, list[Block]] = {}
        for option, value in (("buffer_rows", buffer_rows), ("sample_rows", sample_rows)):
            if value < 1:
                raise UserError(f"data.{option}: expected a number of rows from 1, got {value}.")
        if not 0 <= self.val_fraction + self.test_fraction < 1:
            raise UserError(
                "data.val_fraction and data.test_fraction: expected a sum from 0 to below 1, got "
                f"{self.val_fraction} and {self.test_fraction}."
            )
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise UserError(
                f"data.target: expected one column or several different ones, got {target}."
            )

    @classmethod
    def encode(cls, rows: Any, schema: Schema) -> dict[str, Tensor]:
        """Return rows as ``x``; see ``Tabular.encode``."""
        return Tabular.encode(rows, schema)

    @classmethod
    def describe_inputs(cls, schema: Schema) -> dict[str, Any]:
        return describe(schema)

    def raw_rows(self, rows: Any, split: str) -> dict[str, list[Any]]:
        assert self.schema is not None
        names = dict.fromkeys(column.source for column in self.schema.columns)
        return plain_values(self.source_columns(list(names), rows, split))

    def source_columns(self, names: list[str], rows: Any, split: str) -> pl.DataFrame:
        blocks = self.blocks[split]
        known = list(pl.scan_parquet(blocks[0].shard, glob=False).collect_schema())
        check_names(known, names, "--keep", blocks[0].shard)
        return gather(blocks, names, np.asarray(rows))

    def rows(self, split: str) -> int:
        return sum(block.count for block in self.blocks[split])

    @property
    def memory_bytes(self) -> int:
        """Bytes that the rows of a training take at most: two buffers and a block being read."""
        train = self.splits["train"]
        held = min(2 * self.buffer_rows + BLOCK_ROWS, self.rows("train"))
        return held * nbytes(train) // len(train.row)

    # Setup

    def setup(self, stage: str) -> None:
        if not self.splits and not self._only_new_rows():
            self._set_up_splits()
        if stage == "predict" and "predict" not in self.splits:
            assert self.schema is not None
            if self.predict_path is None:
                self.blocks["predict"] = self.blocks["test"]
            else:
                shards = list_shards(self.predict_path, "data.predict_path")
                inputs = dict.fromkeys(column.source for column in self.schema.columns)
                names = list(shards[0].types)
                check_names(names, list(inputs), "data.predict_path", self.predict_path)
                self.blocks["predict"] = cut(shards)
            self.splits["predict"] = self._examples("predict")

    def _set_up_splits(self) -> None:
        """Count the targets of all blocks, hold out blocks, and fit the schema unless it is set."""
        source = self._open("path", self.task)
        held_out = hold_out(source.blocks, self.val_fraction, self.test_fraction, self.split_seed)
        self.blocks = {name: [source.blocks[i] for i in held_out[name]] for name in SPLITS}
        counts = {name: total(source.targets.counts[i] for i in held_out[name]) for name in SPLITS}
        sources = [source]
        for name in ("val", "test"):
            if getattr(self, f"{name}_path") is not None:
                own = self._open(f"{name}_path", source.targets.task)
                inputs = set(source.shards[0].types) - set(self.targets)
                check_names(
                    list(own.shards[0].types), sorted(inputs), f"data.{name}_path", own.path
                )
                self.blocks[name], counts[name] = own.blocks, total(own.targets.counts)
                sources.append(own)
        content = json.dumps([part.content for part in sources])
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()
        self.findings = [finding for part in sources for finding in part.findings]
        if not counts["train"].rows:
            raise UserError(
                f"{self.path}: expected rows to train on, got none; lower data.val_fraction and "
                "data.test_fraction."
            )
        if self.schema is None:
            self.schema, findings = self._fit(source, counts["train"])
            self.findings += findings
        else:
            check_positive(self.positive, self.schema)
        if self.schema.task in ("binary", "multiclass"):
            check_classes(counts, self.schema.classes, self.path)
            self.findings += find_absent_classes(counts, self.schema)
        self.splits = {name: self._examples(name) for name in SPLITS}

    def _open(self, option: str, task: Task | None) -> "_Source":
        """Return the shards that an option names, with their targets counted."""
        path = getattr(self, option)
        shards = list_shards(path, f"data.{option}")
        check_columns(shards[0], self.targets, list(self.columns) if option == "path" else [])
        blocks = cut(shards)
        sampled = sample(blocks, self.targets, TARGET_ROWS, SAMPLE_BLOCKS)
        task = self.schema.task if self.schema else task
        targets = count_targets(blocks, self.targets, task, sampled, path)
        findings = [*find_partitions(shards, path), *find_missing(blocks, targets.counts, path)]
        content = describe_content(shards, [counts.plain() for counts in targets.counts])
        blocks = with_counts(blocks, [counts.rows for counts in targets.counts])
        return _Source(path, shards, blocks, targets, findings, content)

    def _fit(self, source: "_Source", train: Counts) -> tuple[Schema, list[Finding]]:
        inputs = [name for name in source.shards[0].types if name not in self.targets]
        names = [*inputs, *self.targets]
        rows = sample(self.blocks["train"], names, self.sample_rows, SAMPLE_BLOCKS)
        fields = fit_targets(source.targets, train, self.positive)
        return fit_schema(rows, inputs, self.columns, self.targets, fields, train.rows, self.path)

    def _examples(self, split: str) -> Batch:
        """Return some evenly spread rows of a split, at least a batch if it has as many."""
        assert self.schema is not None
        blocks = [block for block in self.blocks[split] if block.count]
        wanted = max(EXAMPLE_ROWS, self.batch_size or 0) if split == "train" else EXAMPLE_ROWS
        if not blocks:
            # No rows, in the form that rows have.
            first = (self.blocks["train"] or self.blocks[split])[0]
            return take(self._read(first, split), torch.arange(0))
        # Reading many small blocks takes long.
        joined = [block for block, _ in runs_of(blocks, EXAMPLE_ROWS)]
        chosen = joined[:: max(1, len(joined) // EXAMPLE_BLOCKS)]
        parts = []
        for block in chosen:
            batch = self._read(block, split)
            share = min(-(-wanted // len(chosen)), len(batch.row))
            parts.append(take(batch, torch.linspace(0, len(batch.row) - 1, share).round()))
        return concatenate(parts)

    def _read(self, block: Block, split: str) -> Batch:
        """Return the rows of a block that have a target, encoded."""
        assert self.schema is not None
        # Of the test split, the rows with a target are predicted.
        new_rows = split == "predict" and self.predict_path is not None
        targets = [] if new_rows else self.targets
        names = dict.fromkeys([*(column.source for column in self.schema.columns), *targets])
        batch = encode_rows(read_rows(block, list(names)), block, self.schema, targets)
        return batch._replace(y=None) if split == "predict" else batch

    # Batches

    def _checked_batch_size(self, split: str, share: int | None) -> int:
        """Return the batch size; ``share`` is its limit, the training rows of a process.

        Raises UserError unless there are such batches.
        """
        if self.batch_size is None or self.batch_size < 1:
            raise UserError(
                f"data.batch_size: expected a number from 1, got {self.batch_size}; shards are not "
                "read as one batch."
            )
        if not self.rows(split):
            option = "predict_path" if split == "predict" else f"{split}_fraction"
            raise UserError(
                f"the {split} split has no rows; expected at least one row, set data.{option}."
            )
        if share is not None and self.batch_size > share:
            raise UserError(
                f"data.batch_size: expected at most {share}, the training rows of a process, got "
                f"{self.batch_size}; lower it."
            )
        return self.batch_size

    def _loader(self, split: str, shuffle: bool = False, exact: bool = True) -> ArrayLoader:
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        size = self._checked_batch_size(split, None if exact else self.rows(split) // world)
        if exact:
            size = max(size, self._evaluation_batch_size(split))
        if shuffle and self.memory_bytes > (limit := memory_limit()):
            raise UserError(
                f"data.buffer_rows: expected buffers of up to {limit / 1e9:.1f} GB of memory, got "
                f"{self.memory_bytes / 1e9:.1f} GB; lower it."
            )
        return StreamLoader(
            self.splits[split],
            size,
            self.blocks[split],
            lambda block: self._read(block, split),
            # In the order of the source, nothing is gained by holding several blocks.
            self.buffer_rows if shuffle else 1,
            seed=self.seed,
            shuffle=shuffle,
            exact=exact,
            rank=rank,
            world=world,
            pin_memory=self._device().type == "cuda",
        )


class _Source(NamedTuple):
    """Shards with their blocks, targets, findings, and what the fingerprint is made of."""

    path: str
    shards: list[Shard]
    blocks: list[Block]
    targets: SourceTargets
    findings: list[Finding]
    content: list[object]
