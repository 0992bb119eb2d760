"""The page's figures in TensorBoard: of the validation part while training goes on, of the test part after ``test``."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from proj.engine.callbacks.step_outputs import as_arrays, gather_chunks
from proj.models.base import Model

if TYPE_CHECKING:
    from proj.engine.evaluation.figure_sets import Drawn

SECONDS = 60.0  # at least, from one drawing to the next
SHARE = 0.01  # of the time, at most


class FigureLogger(Callback):
    """Draws what a validation during ``fit`` gave, once a minute, or less often where drawing takes long.

    Training of less than a minute has no figures, and does not pay for them: ``test`` draws some.
    """

    def __init__(self) -> None:
        self.chunks: list[dict[str, np.ndarray[Any, Any]]] = []
        self.due = False
        self.wait, self.drawn = SECONDS, time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.wait, self.drawn = SECONDS, time.monotonic()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wanted = isinstance(pl_module, Model) and any(
            isinstance(to, TensorBoardLogger) for to in trainer.loggers
        )
        if wanted and not trainer.sanity_checking:  # by one clock for all processes
            self.due = bool(trainer.strategy.broadcast(time.monotonic() - self.drawn >= self.wait))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        if self.due:
            self.chunks.append(as_arrays(outputs))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.due:
            return
        begin, self.due = time.monotonic(), False
        chunks, self.chunks = gather_chunks(self.chunks), []
        if chunks:
            assert isinstance(pl_module, Model)
            assert pl_module.schema is not None
            from proj.engine.evaluation.figure_sets import (
                figures_of,  # these take a second to import
            )
            from proj.engine.evaluation.prediction_set import read_prediction_set
            from proj.engine.runs.predictions import frame

            columns: dict[str, Any] = {
                name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]
            }
            drawn = list(
                figures_of(
                    read_prediction_set(pl_module.schema, frame(pl_module.schema, **columns))
                )
            )
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    log_figures(logger.experiment, "val", drawn, trainer.global_step)
        self.drawn = time.monotonic()
        self.wait = max(SECONDS, (self.drawn - begin) / SHARE)


def log_figures(writer: SummaryWriter, stage: str, drawn: "Iterable[Drawn]", step: int) -> None:
    """Figures as images of an optimizer step."""
    from proj.engine.html import pixels

    for name, figure, _ in drawn:
        writer.add_image(f"{stage}/{name}", pixels(figure), step, dataformats="HWC")
