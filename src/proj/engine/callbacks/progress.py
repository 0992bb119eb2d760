"""Progress in the terminal: a bar of one line, and the parameters of the model at the start."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    CustomBarColumn,
)
from rich.progress import TimeRemainingColumn
from rich.table import Column, Table
from torch import Tensor

from proj.engine import console
from proj.engine.lightning_internals import end_bars_at_once

REFRESHES_PER_SECOND = 5
BAR_WIDTH = 10
# Columns of the terminal that the bar takes besides the description, the counts of batches and the
# metrics: the bar, the time left, and the blanks between the columns.
FIXED_WIDTH = BAR_WIDTH + len("0:00:00") + 4


class StepProgressBar(RichProgressBar):
    """Lightning's progress bar, counted in optimizer steps and with the loss of the last step.

    It takes one line: metrics that do not fit into the terminal are not shown. It refreshes five
    times a second. A refresh after each batch, as in Lightning, would take a tenth of the time of a
    tiny net. Where the output is no terminal, rich prints the end of the bar only, so the bar is
    drawn then.
    """

    loss: Tensor | None = None
    # Time of the last refresh on the monotonic clock.
    last_refresh = 0.0

    def __init__(self) -> None:
        end_bars_at_once()
        super().__init__(refresh_rate=REFRESHES_PER_SECOND)

    @property
    def total_train_batches(self) -> int | float:
        return getattr(self.trainer.train_dataloader, "batches", super().total_train_batches)

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        description, *_ = super().configure_columns(trainer)
        theme = self.theme
        bar = CustomBarColumn(
            bar_width=BAR_WIDTH,
            complete_style=theme.progress_bar,
            finished_style=theme.progress_bar_finished,
            pulse_style=theme.progress_bar_pulse,
        )
        batches = BatchesProcessedColumn(style=theme.batch_progress)
        return [description, bar, batches, TimeRemainingColumn(compact=True)]

    def refresh(self, hard: bool = False) -> None:
        screen = self.progress.console if self.progress is not None else None
        if screen is not None and (screen.is_terminal or screen.is_jupyter):
            super().refresh(hard)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.loss = outputs.get("loss") if isinstance(outputs, dict) else None
        done = getattr(trainer.train_dataloader, "position", batch_idx + 1)
        due = time.monotonic() - self.last_refresh >= 1 / REFRESHES_PER_SECOND
        if done == self.total_train_batches or due:
            self.last_refresh = time.monotonic()
            super().on_train_batch_end(trainer, pl_module, outputs, batch, done - 1)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        items: dict[str, Any] = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        if self.loss is not None:
            items = {"loss": self.loss.item(), **items}
        description = max(len(f"Epoch {trainer.current_epoch}/{trainer.max_epochs}"), 11)
        batches = 2 * len(f"{self.total_train_batches}") + 1
        assert self.progress is not None
        return fitting_metrics(
            items, self.progress.console.width - FIXED_WIDTH - description - batches
        )


def fitting_metrics(metrics: dict[str, Any], width: int) -> dict[str, str]:
    """Return the first metrics that fit into ``width`` columns, as texts.

    Those of the validation split come before those of training, the loss of the last step first.
    """
    texts: dict[str, str] = {}
    for name in sorted(metrics, key=lambda name: (name != "loss", name.startswith("train"))):
        value = metrics[name]
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        # Lightning writes `name: value` with a blank after each.
        width -= len(f"{name}: {text} ")
        if width < 0:
            break
        texts[name] = text
    return texts


class ParameterSummary(ModelSummary):
    """Show the parts of the model with their numbers of parameters, before training.

    Lightning's table also has a column of operations, which counts none before the first batch.
    """

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        *_: Any,
        **__: Any,
    ) -> None:
        columns = dict(summary_data)
        table = Table("part", "class", Column("parameters", justify="right"))
        parts = zip(columns["Name"], columns["Type"], columns["Params"], strict=True)
        for name, kind, count in parts:
            if count.strip() != "0":
                table.add_row(name, kind, count)
        console.show(table)
        fixed = total_parameters - trainable_parameters
        console.say(
            f"{console.plural(total_parameters, 'parameter')}"
            f"{f', {fixed:,} of them not trained' if fixed else ''}, {model_size:.3g} MB"
        )
