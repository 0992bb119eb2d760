"""Write the outputs of evaluation steps of all processes to one file."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from proj.data.base import DataModule
from proj.engine.callbacks.generic_outputs import (
    NoTable,
    Values,
    columns_of,
    described,
    have_equal_shapes,
    left_out,
    rows_in,
    table_of,
)
from proj.engine.callbacks.step_outputs import answers_in, gather_chunks
from proj.engine.runs.files import atomic_write
from proj.engine.runs.predictions import escape_formulas, frame, writer
from proj.errors import UserError
from proj.models.base import Model
from proj.schema import Array


class PredictionWriter(Callback):
    """Write the outputs of validation, test or predict steps to a file, one line per row.

    Our models return ``row``, ``output`` and, if it is known, ``target``. Another model may return
    a tensor [rows, ...] or a list with an item per row from ``predict_step``, or a dict of these;
    their shapes may differ from batch to batch. Its validation or test step may return such a dict;
    if it returns anything else, nothing is written. Entries of a dict that hold no value for each
    row, such as a loss, are left out, with a warning.

    Args:
        path: file that ends in ``.parquet`` or ``.csv``. Its lines are in row order.
        keep: columns of the data source to write as well.
        escape_formulas: put an apostrophe before the texts that a spreadsheet would compute.
        deferred: write nothing until ``write`` is called, for results that consist of several
            files.

    Attributes:
        table: what is written, on process 0; None before the end of the epoch, and without outputs
            that can be written.
        has_answers: whether the table has the columns of the outputs of our models.
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
        self.chunks: list[dict[str, Values]] = []
        self.batches = self.rows_seen = 0
        self.refused = ""  # The outputs of a batch whose rows cannot be told, for the message.
        self.warned = False
        self.table: pl.DataFrame | None = None
        self.has_answers = False
        # Report a wrong file name before the forward passes.
        writer(path)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.batches += 1
        if not isinstance(outputs, dict) or len(left_out(outputs)) == len(outputs):
            return
        loader = _loader(trainer, dataloader_idx)
        columns = self._columns(trainer, pl_module, outputs, rows_in(batch, loader, batch_idx))
        # Without the rows of an earlier batch, the rows of this one would get wrong numbers.
        if columns is not None and len(self.chunks) == self.batches - 1:
            self._collect(trainer, columns)

    on_validation_batch_end = on_test_batch_end

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Report a wrong column name before the forward passes.
        self._source_columns(trainer, np.zeros(0, np.int64))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        rows = rows_in(batch, _loader(trainer, dataloader_idx), batch_idx)
        columns = self._columns(trainer, pl_module, outputs, rows)
        if columns is None:
            kind = "a dict of " if isinstance(outputs, dict) else ""
            count = "" if rows is None else f" for a batch of {_count(rows)}"
            raise UserError(
                f"predict_step of {type(pl_module).__name__}: expected a tensor or a list with an "
                f"item for each row, or a dict of such, got {kind}{described(outputs)}{count}."
            )
        self._collect(trainer, columns)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            self._build_table(trainer, pl_module)
        except NoTable as error:
            reason = f"the outputs of {type(pl_module).__name__} are no table: {error}"
            if trainer.predicting:
                raise UserError(f"{reason}; return the same names for each batch.") from error
            rank_zero_warn(f"no predictions are written, because {reason}.")
        if self.table is not None and not self.deferred:
            self.write()

    on_validation_epoch_end = on_predict_epoch_end = on_test_epoch_end

    def _columns(
        self, trainer: Trainer, model: LightningModule, outputs: Any, rows: int | None
    ) -> dict[str, Values] | None:
        """Return the outputs by name; None if they have not a value for each of the rows."""
        columns = columns_of(outputs)
        # With row numbers of its own, a step may return any number of values.
        known = rows if columns is None or "row" not in columns else None
        if columns is None or known not in (None, len(next(iter(columns.values())))):
            count = "" if rows is None else f", for a batch of {_count(rows)}"
            reason = f"expected a value for each row, got {described(outputs)}{count}"
            self.refused = self.refused or reason
            return None
        if (others := left_out(outputs)) and not self.warned:
            self.warned = True
            rank_zero_warn(
                f"{type(model).__name__} returns {described(others)}, with no value for each row, "
                f"so the predictions are written without {', '.join(others)}."
            )
        return columns

    def _collect(self, trainer: Trainer, columns: dict[str, Values]) -> None:
        if "row" not in columns:
            # Lightning's sampler gives each process every world-th row of the data set.
            size = len(next(iter(columns.values())))
            positions = np.arange(self.rows_seen, self.rows_seen + size)
            self.rows_seen += size
            columns = {"row": positions * trainer.world_size + trainer.global_rank, **columns}
        self.chunks.append(columns)

    def write(self) -> None:
        """Write the table."""
        table = self.table
        assert table is not None
        atomic_write(self.path, lambda file: writer(self.path)(table, file))

    def _build_table(self, trainer: Trainer, model: LightningModule) -> None:
        is_complete = trainer.predicting or len(self.chunks) in (0, self.batches)
        chunks = gather_chunks(self.chunks if is_complete and not self.refused else [None])
        if None in chunks:
            raise NoTable(self.refused or "some batches have no outputs for their rows")
        if not chunks:
            return
        parts = [answers_in(chunk) for chunk in chunks] if isinstance(model, Model) else []
        if parts and have_equal_shapes(parts):
            assert isinstance(model, Model)
            table = _answer_table(model, parts)
            rows = table["row"].to_numpy()
            is_ours = isinstance(getattr(trainer, "datamodule", None), DataModule)
            assert not is_ours or (np.diff(rows) > 0).all(), "a row was predicted twice"
            self.has_answers = True
            others = [_without(chunk, ("output", "target", "weight")) for chunk in chunks]
            more = table_of(others).drop("row")
            table = table.hstack(_rename_taken(more, table.columns))
        else:
            table = table_of(chunks)
        source = self._source_columns(trainer, table["row"].to_numpy())
        if source is not None:
            table = table.hstack(_rename_taken(source, table.columns))
        self.table = escape_formulas(table) if self.escape_formulas else table

    def _source_columns(self, trainer: Trainer, rows: Array) -> pl.DataFrame | None:
        """Return the id, group and ``keep`` columns of the source for rows; None without any."""
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, DataModule):
            split = "val" if trainer.validating else "test" if trainer.testing else "predict"
            return _source_columns_of(data, rows, split, self.keep)
        if self.keep:
            raise UserError(
                f"--keep: expected a data module of this package, got {type(data).__name__}, which "
                "has no source columns; leave out --keep."
            )
        return None


def add_source_columns(table: pl.DataFrame, data: DataModule, split: str) -> pl.DataFrame:
    """Return a table of predictions with the id and group columns of the source."""
    source = _source_columns_of(data, table["row"].to_numpy(), split, [])
    return table if source is None else table.hstack(_rename_taken(source, table.columns))


def _source_columns_of(
    data: DataModule, rows: Array, split: str, keep: list[str]
) -> pl.DataFrame | None:
    groups = [data.group] if data.group is not None and split != "predict" else []
    names = list(dict.fromkeys([*data.id_columns, *groups, *keep]))
    return data.source_columns(names, rows, split) if names else None


def _answer_table(model: Model, chunks: list[Any]) -> pl.DataFrame:
    """Return the outputs of one of our models as a table."""
    assert model.schema is not None
    columns = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    limits = model.conformal_limits
    return frame(model.schema, **columns, thresholds=model.thresholds, conformal_limits=limits)


def _without(chunk: dict[str, Values], names: tuple[str, ...]) -> dict[str, Values]:
    return {name: values for name, values in chunk.items() if name not in names}


def _rename_taken(source: pl.DataFrame, taken: list[str]) -> pl.DataFrame:
    """Return source columns; the name of a column of predictions gets a prefix."""
    renamed: dict[str, str] = {}
    for name in source.columns:
        if name in taken:
            renamed[name] = f"kept_{name}"
            while renamed[name] in (*taken, *source.columns):
                renamed[name] = f"kept_{renamed[name]}"
    return source.rename(renamed)


def _loader(trainer: Trainer, index: int) -> Any:
    """Return the loader of the evaluation that is running."""
    loaders = (
        trainer.predict_dataloaders
        if trainer.predicting
        else trainer.test_dataloaders
        if trainer.testing
        else trainer.val_dataloaders
    )
    return loaders[index] if isinstance(loaders, list | tuple) else loaders


def _count(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"
