"""Log the figures of reports to TensorBoard, during training and after `test`."""

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from proj.engine.callbacks.process_messages import from_first
from proj.engine.callbacks.step_outputs import answers_in, as_arrays, gather_chunks
from proj.models.base import Model
from proj.schema import Array

if TYPE_CHECKING:
    from proj.engine.evaluation.figure_sets import NamedFigure

MIN_SECONDS_BETWEEN_FIGURES = 60.0
# Share of the time that drawing may take.
MAX_SHARE_OF_TIME = 0.01
# Rows that each process keeps for figures. More would take memory, and change no visible line.
MAX_DRAWN_ROWS = 200_000


class RowSample:
    """A random sample of rows that arrive in chunks, the same in each validation.

    Each row is kept with the same probability. It is halved when the sample is full.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.seen, self.share = limit, 0, 1.0
        self.chunks: list[dict[str, Array]] = []
        self.random = np.random.default_rng(0)

    def add(self, chunk: dict[str, Array]) -> None:
        """Add rows: arrays [rows, ...] by name."""
        self.seen += len(chunk["row"])
        self.chunks.append(self._thinned(chunk, self.share))
        while sum(len(kept["row"]) for kept in self.chunks) > self.limit:
            self.share /= 2
            self.chunks = [self._thinned(kept, 0.5) for kept in self.chunks]

    def _thinned(self, chunk: dict[str, Array], share: float) -> dict[str, Array]:
        if share == 1:
            return chunk
        rows = self.random.random(len(chunk["row"])) < share
        return {name: values[rows] for name, values in chunk.items()}


class FigureLogger(Callback):
    """Callback that logs the figures of a validation during ``fit`` once a minute at most.

    If drawing takes long, it logs less often, so that drawing takes at most ``MAX_SHARE_OF_TIME``.
    A run of less than a minute has no figures of the validation split. `test` logs its own. Of more
    than ``MAX_DRAWN_ROWS`` rows, the figures show a random sample, and say so.
    """

    def __init__(self) -> None:
        self.sample, self.due = RowSample(MAX_DRAWN_ROWS), False
        self.wait, self.last_drawn = MIN_SECONDS_BETWEEN_FIGURES, time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.wait, self.last_drawn = MIN_SECONDS_BETWEEN_FIGURES, time.monotonic()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not isinstance(pl_module, Model):
            return
        if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            # The clock of process 0 decides for all processes.
            elapsed = time.monotonic() - self.last_drawn
            self.due = from_first(trainer, elapsed >= self.wait) == [1]

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        if self.due and (answers := answers_in(outputs)):
            self.sample.add(as_arrays(answers))

    # Drawing takes memory, and here the metrics have freed the probabilities of all rows.
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.due:
            return
        start, self.due = time.monotonic(), False
        samples, self.sample = gather_chunks([self.sample]), RowSample(MAX_DRAWN_ROWS)
        if any(sample.chunks for sample in samples):
            # Importing matplotlib takes a second, and a short run draws nothing.
            from proj.engine.evaluation.figure_sets import log_figures

            assert isinstance(pl_module, Model)
            figures = _draw(pl_module, samples)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    log_figures(logger.experiment, "val", figures, trainer.global_step)
        self.last_drawn = time.monotonic()
        duration = self.last_drawn - start
        self.wait = max(MIN_SECONDS_BETWEEN_FIGURES, duration / MAX_SHARE_OF_TIME)


def _draw(model: Model, samples: list[RowSample]) -> "list[NamedFigure]":
    # Importing matplotlib takes a second, and a short run draws nothing.
    from proj.engine.evaluation.figure_sets import figures_of
    from proj.engine.evaluation.prediction_set import read_prediction_set
    from proj.engine.runs.predictions import frame

    assert model.schema is not None
    chunks = [chunk for sample in samples for chunk in sample.chunks]
    columns: dict[str, Any] = {
        name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]
    }
    figures = list(figures_of(read_prediction_set(model.schema, frame(model.schema, **columns))))
    drawn, rows = len(columns["row"]), sum(sample.seen for sample in samples)
    for _, figure, _ in figures if drawn < rows else ():
        figure.suptitle(f"a random sample: {drawn:,} of {rows:,} rows", fontsize="small")
    return figures
