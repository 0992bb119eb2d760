"""Write the outputs of evaluation steps of all processes to one file."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from proj.data.base import DataModule
from proj.engine.callbacks.step_outputs import as_arrays, gather_chunks
from proj.engine.runs.files import atomic_write
from proj.engine.runs.predictions import escape_formulas, frame, writer
from proj.errors import UserError
from proj.models.base import Model
from proj.schema import Array


class PredictionWriter(Callback):
    """Write the outputs of validation, test or predict steps to a file, one line per row.

    Our models return ``row``, ``output`` and, if it is known, ``target``. Another model may return
    a tensor [rows] or [rows, columns] from ``predict_step``, or a dict of such tensors.
    If its validation or test step returns anything else, nothing is written.

    Args:
        path: file that ends in ``.parquet`` or ``.csv``. Its lines are in row order.
        keep: columns of the data source to write as well.
        escape_formulas: put an apostrophe before the texts that a spreadsheet would compute.
        deferred: write nothing until ``write`` is called, for results that consist of several
            files.

    Attributes:
        table: what is written, on process 0; None before the end of the epoch, and without outputs
            that can be written.
    """

    def __init__(
        self,
        path: Path,
        keep: list[str] | None = None,
        escape_formulas: bool = False,
        deferred: bool = False,
    ) -> None:
        self.path, self.keep, self.deferred = path, keep or [], deferred
        self.escape_formulas = escape_formulas
        self.chunks: list[dict[str, Array]] = []
        self.rows_seen = 0
        self.table: pl.DataFrame | None = None
        # Report a wrong file name before the forward passes.
        writer(path)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        if _are_columns(outputs):
            self._collect(trainer, outputs)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.on_test_batch_end(trainer, pl_module, outputs)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Report a wrong column name before the forward passes.
        self._source_columns(trainer, np.zeros(0, np.int64))

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        outputs = {"prediction": outputs} if isinstance(outputs, Tensor) else outputs
        if not _are_columns(outputs):
            raise UserError(
                f"predict_step of {type(pl_module).__name__}: expected a tensor with a row for "
                f"each input, or a dict of such tensors, got {type(outputs).__name__}."
            )
        self._collect(trainer, outputs)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._build_table(trainer, pl_module)
        if self.table is not None and not self.deferred:
            self.write()

    on_validation_epoch_end = on_predict_epoch_end = on_test_epoch_end

    def _collect(self, trainer: Trainer, outputs: dict[str, Tensor]) -> None:
        if "row" not in outputs:
            # Lightning's sampler gives each process every world-th row of the data set.
            size = len(next(iter(outputs.values())))
            positions = torch.arange(self.rows_seen, self.rows_seen + size)
            self.rows_seen += size
            outputs = {"row": positions * trainer.world_size + trainer.global_rank, **outputs}
        self.chunks.append(as_arrays(outputs))

    def write(self) -> None:
        """Write the table."""
        table = self.table
        assert table is not None
        atomic_write(self.path, lambda file: writer(self.path)(table, file))

    def _build_table(self, trainer: Trainer, model: LightningModule) -> None:
        if not (chunks := gather_chunks(self.chunks)):
            return
        columns = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        if isinstance(model, Model):
            assert model.schema is not None
            table = frame(model.schema, **columns, thresholds=model.thresholds)
            assert (np.diff(table["row"].to_numpy()) > 0).all(), "a row was predicted twice"
        else:
            table = _generic_table(columns)
        source = self._source_columns(trainer, table["row"].to_numpy())
        if source is not None:
            table = table.hstack(_rename_taken(source, table.columns))
        self.table = escape_formulas(table) if self.escape_formulas else table

    def _source_columns(self, trainer: Trainer, rows: Array) -> pl.DataFrame | None:
        """Return the id, group and ``keep`` columns of the source for rows; None without any."""
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, DataModule):
            split = "val" if trainer.validating else "test" if trainer.testing else "predict"
            groups = [data.group] if data.group is not None and split != "predict" else []
            names = list(dict.fromkeys([*data.id_columns, *groups, *self.keep]))
            return data.source_columns(names, rows, split) if names else None
        if self.keep:
            raise UserError(
                f"--keep: expected a data module of this package, got {type(data).__name__}, which "
                "has no source columns; leave out --keep."
            )
        return None


def _rename_taken(source: pl.DataFrame, taken: list[str]) -> pl.DataFrame:
    """Return source columns; the name of a column of predictions gets a prefix."""
    renamed: dict[str, str] = {}
    for name in source.columns:
        if name in taken:
            renamed[name] = f"kept_{name}"
            while renamed[name] in (*taken, *source.columns):
                renamed[name] = f"kept_{renamed[name]}"
    return source.rename(renamed)


def _are_columns(outputs: Any) -> bool:
    """Return whether the outputs are a dict of tensors that have a row axis."""
    return isinstance(outputs, dict) and all(
        isinstance(values, Tensor) and values.ndim for values in outputs.values()
    )


def _generic_table(columns: dict[str, Array]) -> pl.DataFrame:
    """Return the outputs of a model that is not ours as a table.

    The columns of an array with several columns get numbered names.
    """
    table: dict[str, Array] = {}
    for name, values in columns.items():
        wide = values.reshape(len(values), -1)
        width = wide.shape[1]
        table |= {name if width == 1 else f"{name}_{i}": wide[:, i] for i in range(width)}
    return pl.DataFrame(table).sort("row")
