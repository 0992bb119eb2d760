"""What the data modules have in common: three parts of rows, a schema, and loaders over them."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule

from proj.data.loader import ArrayLoader, nbytes, take, to
from proj.errors import UserError
from proj.schema import Batch, Schema, Tensors

if TYPE_CHECKING:  # half a second, and arrays need none of it
    import polars as pl


class Finding(NamedTuple):
    """Something odd about a data set."""

    what: str
    effect: str  # on the result
    remedy: str  # what to write in the YAML, or to do with the data

    def __str__(self) -> str:
        return f"{self.what}: {self.effect}; {self.remedy}."


class DataModule(LightningDataModule, ABC):
    """A data module whose ``setup`` fills ``parts`` (train, val, test, predict) and, unless it was given one, ``schema``.

    Args:
        batch_size: rows a batch and device; null means all rows of a part at once.
        shuffle: draw a new order of the training rows each epoch, from the seed and the epoch alone.
        predict_path: where the rows for ``predict`` are; null means the test part.
    """

    def __init__(
        self, batch_size: int | None, shuffle: bool, predict_path: str | None = None
    ) -> None:
        super().__init__()
        self.batch_size, self.shuffle, self.predict_path = batch_size, shuffle, predict_path
        self.seed = torch.initial_seed() % 2**32
        self.splits: dict[str, Batch] = {}
        self.on_device: dict[str, Batch] = {}  # parts that an accelerator has the memory to hold
        self.schema: Schema | None = (
            None  # set from a checkpoint before `setup`, nothing is fitted again
        )
        self.findings: list[Finding] = []  # what `setup` itself came across
        self.fingerprint = ""  # a hash of the source's content, for the run's manifest
        self.steps_per_execution: int | None = (
            None  # batches in a block of training batches; null: batches one by one
        )
        self.validation_period: int | None = (
            None  # batches from one validation to the next, if not an epoch
        )

    @classmethod
    @abstractmethod
    def encode(cls, rows: Any, schema: Schema) -> Tensors:
        """Raw rows as the net's input; raises UserError where they do not fit the schema."""

    def _only_new_rows(self) -> bool:
        """Whether the rows to predict and the schema of a run are all that is needed."""
        predicting = self.trainer is not None and self.trainer.predicting
        return predicting and self.predict_path is not None and self.schema is not None

    @property
    def id_columns(self) -> list[str]:
        """Columns of the source that tell a row better than its number; they are always kept beside predictions."""
        return []

    @property
    def group(self) -> str | None:
        """The column of the source whose equal values belong together, such as a customer; kept beside what is scored."""
        return None

    def source_columns(self, names: list[str], rows: Any, stage: str) -> "pl.DataFrame":
        """Columns of a stage's source (val, test or predict), for these rows; raises UserError where there are none."""
        raise UserError(
            f"--keep: expected a table as the source, {type(self).__name__} has no columns to keep."
        )

    def augment_batch(self, batch: Batch) -> Batch:
        """A training batch on its device, changed by chance, as pictures are; as it is, if not overridden."""
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer is None or not self.trainer.training or not isinstance(batch, Batch):
            return batch  # the batches of a block are changed one by one, before the step of each
        return self.augment_batch(batch)

    def train_dataloader(self) -> ArrayLoader:
        overfitting = (
            getattr(self.trainer, "overfit_batches", 0) > 0
        )  # on the same batches each epoch
        loader = self._loader("train", shuffle=self.shuffle and not overfitting, exact=False)
        loader.steps, loader.period = self.steps_per_execution, self.validation_period
        rows, world = len(self.splits["train"].row), loader.world
        if loader.batch_size > rows // world:
            share = f"{rows} training rows" + (f" on {world} processes" if world > 1 else "")
            raise UserError(
                f"data.batch_size: expected at most {rows // world} ({share}), got {loader.batch_size}; "
                "lower it, or write null for all rows at once."
            )
        return loader

    def val_dataloader(self) -> ArrayLoader | list[ArrayLoader]:
        fitting = self.trainer is None or self.trainer.state.fn == "fit"
        return [] if fitting and not self.rows("val") else self._loader("val")

    def test_dataloader(self) -> ArrayLoader:
        return self._loader("test")

    def predict_dataloader(self) -> ArrayLoader:
        return self._loader("predict")

    def rows(self, stage: str) -> int:
        return len(self.splits[stage].row)

    def _loader(self, stage: str, shuffle: bool = False, exact: bool = True) -> ArrayLoader:
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(
                f"data.batch_size: expected rows from 1 up, or null for all at once, got {self.batch_size}."
            )
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        if not self.rows(stage):
            option = "data.predict_path" if stage == "predict" else f"data.{stage}_fraction"
            raise UserError(f"the {stage} part has no rows; expected at least one, set {option}.")
        size = self.batch_size or -(-self.rows(stage) // world)
        part = self._placed(stage)
        return ArrayLoader(
            part,
            max(size, self._at_once(stage)) if exact else size,
            seed=self.seed,
            shuffle=shuffle,
            exact=exact,
            rank=rank,
            world=world,
            pin_memory=part.row.device.type == "cpu" and self._device().type == "cuda",
        )

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _placed(self, stage: str) -> Batch:
        """A part on the GPU, once and for all, if it takes no more than a quarter of what is free there; else as it is."""
        device, part = self._device(), self.splits[stage]
        if device.type != "cuda":
            return part
        if stage not in self.on_device and 4 * nbytes(part) <= torch.cuda.mem_get_info(device)[0]:
            self.on_device[stage] = to(part, device)
        return self.on_device.get(stage, part)

    def _at_once(self, stage: str) -> int:
        """How many rows the model would like to evaluate at once, where the Trainer does not count batches."""
        evaluation_batch_size = getattr(
            getattr(self.trainer, "lightning_module", None), "evaluation_batch_size", None
        )
        limits = {getattr(self.trainer, f"limit_{name}_batches", 1.0) for name in (stage, "train")}
        if evaluation_batch_size is None or limits != {1.0}:
            return 0
        assert self.trainer is not None
        some = take(self.splits[stage], torch.arange(min(2, self.rows(stage))))
        return int(evaluation_batch_size(self.trainer.strategy.batch_to_device(some).x))
