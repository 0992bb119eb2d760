"""Outputs of the validation, test and predict steps, gathered into one file."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from proj.data.base import DataModule
from proj.engine.callbacks.step_outputs import as_arrays, gather_chunks
from proj.engine.runs.predictions import frame, writer
from proj.engine.runs.run import atomic_write
from proj.errors import UserError
from proj.models.base import Model


class PredictionWriter(Callback):
    """Write what the steps return for each row into ``path`` (``.parquet`` or ``.csv``), in row order.

    Our models return ``row``, ``output`` and, where it is known, ``target``. A user's own model may return a tensor [rows]
    or [rows, columns], or a dict of such tensors; from a validation or test step that returns anything else nothing is
    written. ``keep`` names columns of the source to write beside them.
    """

    def __init__(self, path: Path, keep: list[str] | None = None) -> None:
        self.path, self.keep = path, keep or []
        self.chunks: list[dict[str, np.ndarray[Any, Any]]] = []
        self.seen = 0
        self.written = False
        writer(path)  # a wrong ending should be known before the work

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        if isinstance(outputs, dict) and all(
            isinstance(v, Tensor) and v.ndim for v in outputs.values()
        ):
            self._keep(trainer, outputs)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.on_test_batch_end(trainer, pl_module, outputs)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        outputs = {"prediction": outputs} if isinstance(outputs, Tensor) else outputs
        if not isinstance(outputs, dict) or not all(
            isinstance(v, Tensor) and v.ndim for v in outputs.values()
        ):
            raise UserError(
                f"predict_step of {type(pl_module).__name__}: expected a tensor with a row for each input, or "
                f"a dict of such tensors, got {type(outputs).__name__}."
            )
        self._keep(trainer, outputs)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kept(
            trainer, np.zeros(0, np.int64)
        )  # a wrong name, too, should be known before the work

    def _kept(self, trainer: Trainer, rows: np.ndarray[Any, Any]) -> pl.DataFrame | None:
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, DataModule):
            stage = "val" if trainer.validating else "test" if trainer.testing else "predict"
            groups = [data.group] if data.group and stage != "predict" else []
            names = list(dict.fromkeys([*data.id_columns, *groups, *self.keep]))
            return data.source_columns(names, rows, stage) if names else None
        if self.keep:
            raise UserError(
                f"--keep: expected one of our data modules, {type(data).__name__} has no columns to keep."
            )
        return None

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)

    on_validation_epoch_end = on_predict_epoch_end = on_test_epoch_end

    def _keep(self, trainer: Trainer, outputs: dict[str, Tensor]) -> None:
        if (
            "row" not in outputs
        ):  # a stranger's: each process has every world-th row of the data set
            place = torch.arange(self.seen, self.seen + len(next(iter(outputs.values()))))
            self.seen += len(place)
            outputs = {"row": place * trainer.world_size + trainer.global_rank, **outputs}
        self.chunks.append(as_arrays(outputs))

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (chunks := gather_chunks(self.chunks)):
            return
        columns = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        if isinstance(pl_module, Model):
            assert pl_module.schema is not None
            table = frame(pl_module.schema, **columns, thresholds=pl_module.thresholds)
            assert (np.diff(table["row"].to_numpy()) > 0).all(), "a row was predicted twice"
        else:
            table = _plain(columns)
        if (kept := self._kept(trainer, table["row"].to_numpy())) is not None:
            table = table.hstack(
                kept.rename(
                    {name: f"kept_{name}" for name in kept.columns if name in table.columns}
                )
            )
        atomic_write(self.path, lambda file: writer(self.path)(table, file))
        self.written = True


def _plain(columns: dict[str, np.ndarray[Any, Any]]) -> pl.DataFrame:
    """A stranger's outputs: a column for each, numbered where one has several."""
    table: dict[str, np.ndarray[Any, Any]] = {}
    for name, values in columns.items():
        wide = values.reshape(len(values), -1)
        table |= {
            name if wide.shape[1] == 1 else f"{name}_{i}": wide[:, i] for i in range(wide.shape[1])
        }
    return pl.DataFrame(table).sort("row")
