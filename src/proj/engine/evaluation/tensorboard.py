"""Log the figures of reports to TensorBoard, during training and after `test`."""

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from proj.engine.callbacks.step_outputs import answers_in, as_arrays, gather_chunks
from proj.models.base import Model
from proj.schema import Array

if TYPE_CHECKING:
    from proj.engine.evaluation.figure_sets import NamedFigure

MIN_SECONDS_BETWEEN_FIGURES = 60.0
# Share of the time that drawing may take.
MAX_SHARE_OF_TIME = 0.01


class FigureLogger(Callback):
    """Callback that logs the figures of a validation during ``fit`` once a minute at most.

    If drawing takes long, it logs less often, so that drawing takes at most ``MAX_SHARE_OF_TIME``.
    A run of less than a minute has no figures of the validation split. `test` logs its own.
    """

    def __init__(self) -> None:
        self.chunks: list[dict[str, Array]] = []
        self.due = False
        self.wait, self.last_drawn = MIN_SECONDS_BETWEEN_FIGURES, time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.wait, self.last_drawn = MIN_SECONDS_BETWEEN_FIGURES, time.monotonic()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not isinstance(pl_module, Model):
            return
        if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            # The clock of process 0 decides for all processes.
            elapsed = time.monotonic() - self.last_drawn
            self.due = bool(trainer.strategy.broadcast(elapsed >= self.wait))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        if self.due and (answers := answers_in(outputs)):
            self.chunks.append(as_arrays(answers))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.due:
            return
        start, self.due = time.monotonic(), False
        chunks, self.chunks = gather_chunks(self.chunks), []
        if chunks:
            # Importing matplotlib takes a second, and a short run draws nothing.
            from proj.engine.evaluation.figure_sets import log_figures

            assert isinstance(pl_module, Model)
            figures = _draw(pl_module, chunks)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    log_figures(logger.experiment, "val", figures, trainer.global_step)
        self.last_drawn = time.monotonic()
        duration = self.last_drawn - start
        self.wait = max(MIN_SECONDS_BETWEEN_FIGURES, duration / MAX_SHARE_OF_TIME)


def _draw(model: Model, chunks: list[dict[str, Array]]) -> "list[NamedFigure]":
    # Importing matplotlib takes a second, and a short run draws nothing.
    from proj.engine.evaluation.figure_sets import figures_of
    from proj.engine.evaluation.prediction_set import read_prediction_set
    from proj.engine.runs.predictions import frame

    assert model.schema is not None
    columns: dict[str, Any] = {
        name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]
    }
    return list(figures_of(read_prediction_set(model.schema, frame(model.schema, **columns))))
