"""Base class of the data modules: four splits, a schema, and loaders over the splits."""

import csv
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule

from proj.data.loader import ArrayLoader, nbytes, take
from proj.errors import UserError
from proj.schema import Array, Batch, Finding, Schema, Task, Tensors

if TYPE_CHECKING:
    # Importing takes half a second, and arrays do not need it.
    import polars as pl


def split_names(text: str, option: str) -> list[str]:
    """Return column names that are separated by commas.

    A name with a comma stands in double quotes, as in a CSV file.
    """
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise UserError(
            f"{option}: expected names separated by commas, a name with a comma or a line break in "
            f"double quotes, got {text!r}."
        ) from error


class DataModule(LightningDataModule, ABC):
    """A data module whose ``setup`` fills ``splits``, and ``schema`` unless it is already set.

    Args:
        batch_size: rows per batch and device; null means all rows of a split in one batch.
        shuffle: whether the training rows get a new order in each epoch, a function of the seed
            and the epoch only.
        predict_path: source of the rows for ``predict``; null means the test split.

    Attributes:
        splits: train, val, test and predict as whole batches.
        schema: what is known of the data, fitted on the training split. ``setup`` keeps a schema
            that was set before, such as a checkpoint's, and fits nothing again.
        findings: problems that ``setup`` found.
        fingerprint: a hash of the content of the source, for the manifest of a run.
        steps_per_execution: batches in one training step; None means single batches.
        validation_period: batches between two validations, if not an epoch.
    """

    def __init__(
        self, batch_size: int | None, shuffle: bool, predict_path: str | None = None
    ) -> None:
        super().__init__()
        self.batch_size, self.shuffle, self.predict_path = batch_size, shuffle, predict_path
        self.seed = torch.initial_seed() % 2**32
        self.splits: dict[str, Batch] = {}
        self.on_device: dict[str, Batch] = {}  # copies of splits in the memory of an accelerator
        self.schema: Schema | None = None
        self.findings: list[Finding] = []
        self.fingerprint = ""
        self.steps_per_execution: int | None = None
        self.validation_period: int | None = None

    # Hooks for subclasses

    @classmethod
    @abstractmethod
    def encode(cls, rows: Any, schema: Schema) -> Tensors:
        """Return raw rows as input of the net. Raises UserError if they do not fit the schema."""

    @classmethod
    def for_source(
        cls, path: str, target: str | list[str] | None, task: Task | None
    ) -> Self | None:
        """Return a data module for a source that `init` was given.

        Returns None if this class does not read such a source. Raises UserError if it does, but
        ``target`` or ``task`` do not fit.
        """
        return None

    def experiment_template(self, path: str) -> tuple[Path, dict[str, Any]]:
        """Return the template of the experiment that `init` writes, and values for it."""
        raise NotImplementedError(f"{type(self).__name__} has no experiment_template")

    @property
    def id_columns(self) -> list[str]:
        """Columns of the source that identify a row; predictions always include them."""
        return []

    @property
    def group(self) -> str | None:
        """Column of the source whose equal values belong together, such as a customer."""
        return None

    @property
    def left_out_columns(self) -> list[str]:
        """Columns of the test split's source that are neither inputs nor targets."""
        return []

    def source_hashes(self, split: str) -> Array | None:
        """Return hashes of a split's rows as the source has them, without targets: [rows] uint64.

        None means that rows with equal inputs are equal in the source, too.
        """
        return None

    def source_columns(self, names: list[str], rows: Any, split: str) -> "pl.DataFrame":
        """Return columns of a split's source (val, test or predict) for row numbers ``rows``.

        Raises UserError if the source has no such columns.
        """
        raise UserError(
            f"--keep: expected a table as the source, {type(self).__name__} has no columns to keep."
        )

    @classmethod
    def describe_inputs(cls, schema: Schema) -> dict[str, Any]:
        """Return how raw rows become inputs of the net, as plain values for a bundle of `export`.

        By default a bundle takes rows that ``encode`` has encoded.
        """
        dtype = schema.input_type or "float32"
        return {"kind": "arrays", "shape": list(schema.input_shape), "dtype": dtype}

    def raw_rows(self, rows: Array, split: str) -> Any:
        """Return rows of a split, by their numbers, in the form that ``describe_inputs`` names."""
        batch = self.splits[split]
        positions = torch.searchsorted(batch.row.sort().values, torch.tensor(rows).to(batch.row))
        return take(batch, batch.row.argsort()[positions]).x

    def augment_batch(self, batch: Batch) -> Batch:
        """Return a randomly augmented training batch, on its device. By default it is unchanged."""
        return batch

    # Batches

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        # The model augments the batches of an Execution one by one, before the step of each.
        if self.trainer is None or not self.trainer.training or not isinstance(batch, Batch):
            return batch
        return self.augment_batch(batch)

    def train_dataloader(self) -> ArrayLoader:
        # `overfit_batches` needs the same batches in each epoch.
        overfitting = getattr(self.trainer, "overfit_batches", 0) > 0
        loader = self._loader("train", shuffle=self.shuffle and not overfitting, exact=False)
        loader.steps, loader.period = self.steps_per_execution, self.validation_period
        rows, world = self.rows("train"), loader.world
        if loader.batch_size > rows // world:
            share = f"{rows} training rows" + (f" on {world} processes" if world > 1 else "")
            raise UserError(
                f"data.batch_size: expected at most {rows // world} ({share}), got "
                f"{loader.batch_size}; lower it, or write null for all rows at once."
            )
        return loader

    def val_dataloader(self) -> ArrayLoader | list[ArrayLoader]:
        fitting = self.trainer is None or self.trainer.state.fn == "fit"
        return [] if fitting and not self.rows("val") else self._loader("val")

    def test_dataloader(self) -> ArrayLoader:
        return self._loader("test")

    def predict_dataloader(self) -> ArrayLoader:
        return self._loader("predict")

    def rows(self, split: str) -> int:
        """Return the number of rows of a split."""
        return len(self.splits[split].row)

    def _only_new_rows(self) -> bool:
        """Return whether the rows to predict and the schema of a run are all that is needed."""
        predicting = self.trainer is not None and self.trainer.predicting
        return predicting and self.predict_path is not None and self.schema is not None

    def _loader(self, split: str, shuffle: bool = False, exact: bool = True) -> ArrayLoader:
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(
                "data.batch_size: expected a number from 1, or null for all rows at once, got "
                f"{self.batch_size}."
            )
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if not self.rows(split):
            option = "data.predict_path" if split == "predict" else f"data.{split}_fraction"
            raise UserError(
                f"the {split} split has no rows; expected at least one row, set {option}."
            )
        size = self.batch_size or -(-self.rows(split) // world)
        if exact:
            size = max(size, self._evaluation_batch_size(split))
        rows, device = self._on_device(split), self._device()
        return ArrayLoader(
            rows,
            size,
            seed=self.seed,
            shuffle=shuffle,
            exact=exact,
            rank=rank,
            world=world,
            pin_memory=rows.row.device.type == "cpu" and device.type == "cuda",
        )

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _on_device(self, split: str) -> Batch:
        """Return a split, on the GPU if it takes at most a quarter of the free memory there."""
        device, rows = self._device(), self.splits[split]
        if device.type != "cuda":
            return rows
        if split not in self.on_device and 4 * nbytes(rows) <= torch.cuda.mem_get_info(device)[0]:
            self.on_device[split] = move_data_to_device(rows, device)
        return self.on_device.get(split, rows)

    def _evaluation_batch_size(self, split: str) -> int:
        """Return the batch size that the model prefers, or 0 if the Trainer limits the batches."""
        model = getattr(self.trainer, "lightning_module", None)
        preferred_size = getattr(model, "evaluation_batch_size", None)
        limits = {getattr(self.trainer, f"limit_{name}_batches", 1.0) for name in (split, "train")}
        if preferred_size is None or limits != {1.0}:
            return 0
        assert self.trainer is not None
        sample = take(self.splits[split], torch.arange(min(2, self.rows(split))))
        return int(preferred_size(self.trainer.strategy.batch_to_device(sample).x))
