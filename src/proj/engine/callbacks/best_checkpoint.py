"""Callbacks that select the best weights, stop early, and load initial weights."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.parameter import is_lazy

from proj.engine.lightning_internals import (
    restore_model_checkpoint,
    validations_without_improvement,
)
from proj.engine.runs.weights import load_fitting
from proj.errors import TrainingError
from proj.metrics import metric_info
from proj.schema import Label, Schema

# Decides between epochs whose monitored metric is the same.
LOSS = "val/loss"

# A smaller fall of the loss of classes or labels does not keep training going. Where classes are
# easily told apart, the loss is halved again and again after all predictions are correct.
MIN_LOSS_CHANGE = 0.001
CLASS_TASKS = ("binary", "multiclass", "multilabel")

# Fewer validations may agree by chance, and do not call for a warning.
MIN_CONSTANT_VALIDATIONS = 5


class Progress:
    """Whether a monitored metric ever changed, over the validations of a training.

    Attributes:
        first: the metric's first value; None before the first validation.
        validations: number of values.
        moved: whether a value differs from the first one.
    """

    def __init__(self) -> None:
        self.first: float | None = None
        self.validations, self.moved = 0, False

    def add(self, value: float) -> None:
        self.first = value if self.first is None else self.first
        self.validations += 1
        self.moved |= value != self.first


class BestCheckpoint(callbacks.ModelCheckpoint):
    """Save the best epoch by a metric to ``best.ckpt``.

    Of epochs with the same value, the one with the smallest ``val/loss`` is the best. Every
    checkpoint holds the experiment's config and the data's schema as plain values, so that it can
    be used without any other file.

    Args:
        monitor: metric to choose the best epoch by; null means the model's own (``val/f1``,
            ``val/rmse``).
        mode: whether a smaller or a larger value is better; null means the metric's own mode.
        dirpath: folder of the file.
        config: the experiment, for the checkpoints to carry.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        dirpath: Path | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.config = config or {}
        self.schema: dict[str, Any] | None = None
        # All metrics that were logged when best.ckpt was written.
        self.best_metrics: dict[str, float] = {}
        self.best_epoch: int | None = None
        self.progress = Progress()
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode or "min",
            save_top_k=1,
            enable_version_counter=False,
            save_on_train_epoch_end=_after_training_epoch(monitor),
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        previous_score = self.best_model_score
        super().on_validation_end(trainer, pl_module)
        self._record_metrics(trainer, previous_score)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        previous_score = self.best_model_score
        super().on_train_epoch_end(trainer, pl_module)
        self._record_metrics(trainer, previous_score)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        if current is not None:
            self.progress.add(current.item())
        return super().check_monitor_top_k(trainer, current) or self._wins_tie(trainer, current)

    def _wins_tie(self, trainer: Trainer, current: Tensor | None) -> bool:
        """Return whether this epoch has the best epoch's score and a smaller loss."""
        loss = trainer.callback_metrics.get(LOSS)
        if loss is None or current is None or self.best_model_score is None or self.monitor == LOSS:
            return False
        return bool(current == self.best_model_score and loss < self.best_metrics[LOSS])

    def _record_metrics(self, trainer: Trainer, previous_score: Tensor | None) -> None:
        if self.best_model_score is not previous_score or self.monitor is None:
            self.best_epoch = trainer.current_epoch
            self.best_metrics = {
                name: value.item() for name, value in trainer.callback_metrics.items()
            }

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "best_metrics": self.best_metrics,
            "best_epoch": self.best_epoch,
            "progress": vars(self.progress).copy(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, also in a folder that was moved.

        A new run that continues another run's checkpoint (``--ckpt_path``) has no ``best.ckpt`` yet
        and chooses its own.
        """
        file = Path(str(self.dirpath)) / "best.ckpt"
        if file.is_file():
            self.best_metrics = state_dict.get("best_metrics", {})
            self.best_epoch = state_dict.get("best_epoch")
            vars(self.progress).update(state_dict.get("progress", {}))
            restore_model_checkpoint(self, state_dict, file)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for name, values in pl_module.named_parameters():
            if not is_lazy(values) and not torch.isfinite(values).all():
                raise TrainingError(
                    f"{name} is not finite in epoch {trainer.current_epoch}: expected finite "
                    "weights; lower the learning rate, clip gradients, or look for extreme inputs. "
                    "Earlier checkpoints are kept."
                )
        if self.schema is None:  # The schema is long and does not change, so it is converted once.
            data = getattr(trainer, "datamodule", None)
            schema = getattr(pl_module, "schema", None) or getattr(data, "schema", None)
            self.schema = schema.to_dict() if isinstance(schema, Schema) else None
        checkpoint["config"], checkpoint["schema"] = self.config, self.schema

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if not self.best_model_path:
            rank_zero_warn(
                "no validation took place, so there is no best.ckpt; use the last epoch's "
                "checkpoint with `--ckpt_path last`."
            )
        elif self.monitor and not self.progress.moved:
            self._warn_of_constant_metric()

    def _warn_of_constant_metric(self) -> None:
        """Warn that the metric cannot tell epochs apart, unless it had its best possible value."""
        value, info = self.progress.first, metric_info(str(self.monitor))
        is_perfect = info is not None and value == (1.0 if info.mode == "max" else 0.0)
        if is_perfect or self.progress.validations < MIN_CONSTANT_VALIDATIONS:
            return
        by_loss = LOSS in self.best_metrics and self.monitor != LOSS
        effect = f"the best epoch was chosen by {LOSS}" if by_loss else "no epoch is the best one"
        rank_zero_warn(
            f"{self.monitor} was {value:.4g} in each of the {self.progress.validations} "
            f"validations, so {effect}; train longer, raise the learning rate, or name another "
            "metric with --checkpoint.monitor."
        )


class EarlyStopping(callbacks.EarlyStopping):
    """Stop when a metric has not improved for a number of validations.

    As long as the metric has not changed at all, such as the F1 of a rare class that is never
    predicted, a smaller ``val/loss`` counts as an improvement, too.

    Args:
        monitor: the metric; null means the one that the best checkpoint is chosen by.
        mode: whether a smaller or a larger value is better; null means the metric's own mode.
        patience: validations without improvement to wait for; null switches early stopping off.
        min_delta: smallest change that counts as an improvement, in the metric's unit; several
            changes within the patience add up. Null means 0.001 for ``val/loss`` of classes and
            labels, and 0 for other metrics.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        patience: int | None = None,
        min_delta: float | None = None,
    ) -> None:
        self.checkpoint_patience = patience or 0
        self.progress = Progress()
        self.best_loss = float("inf")
        self.own_min_delta = min_delta
        super().__init__(
            monitor=monitor or "",
            mode=mode or "min",
            patience=patience or 0,
            min_delta=min_delta or 0.0,
            check_on_train_epoch_end=_after_training_epoch(monitor),
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        if not trainer.sanity_checking and {self.monitor, LOSS} <= metrics.keys():
            self.progress.add(metrics[self.monitor].item())
            needed = self.best_loss - self._loss_change(pl_module)
            if not self.progress.moved and (loss := metrics[LOSS].item()) < needed:
                # The check, now or at the end of the epoch, adds one.
                self.best_loss, self.wait_count = loss, -1
        super().on_validation_end(trainer, pl_module)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.monitor == LOSS:  # Lightning subtracts it, so it is negative.
            self.min_delta = -self._loss_change(pl_module)

    def _loss_change(self, pl_module: LightningModule) -> float:
        """Return the change of ``val/loss`` that counts as an improvement."""
        if self.own_min_delta is not None:
            return abs(self.own_min_delta)
        return MIN_LOSS_CHANGE if getattr(pl_module, "task", None) in CLASS_TASKS else 0.0

    def state_dict(self) -> dict[str, Any]:
        progress = {"progress": vars(self.progress).copy(), "best_loss": self.best_loss}
        return {**super().state_dict(), **progress}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self.progress).update(state_dict.get("progress", {}))
        self.best_loss = state_dict.get("best_loss", self.best_loss)
        self.checkpoint_patience = state_dict["patience"]
        super().load_state_dict({**state_dict, "patience": self.patience})

    @property
    def patience_was_raised(self) -> bool:
        """Whether the patience is larger than in the resumed checkpoint and not yet used up."""
        raised = self.patience > self.checkpoint_patience
        return raised and validations_without_improvement(self) < self.patience


class InitialWeights(Callback):
    """Load the weights of a checkpoint before training, as far as they fit the model.

    Args:
        state: weights by parameter name.
        source: name of the checkpoint, for messages.
        classes: the classes that the weights were trained for, if they are known.

    Attributes:
        report: one line about what did and did not fit; empty until ``on_fit_start``.
    """

    def __init__(self, state: dict[str, Any], source: str, classes: tuple[Label, ...] = ()) -> None:
        self.state, self.source, self.classes, self.report = state, source, classes, ""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report = load_fitting(pl_module, self.state, self.source)
        schema, classes = getattr(pl_module, "schema", None), self.classes
        if isinstance(schema, Schema) and len(classes) == 2 and classes == schema.classes[::-1]:
            self.report += f"; its positive class is {classes[1]}, not {schema.classes[1]}"


def _after_training_epoch(monitor: str | None) -> bool | None:
    """Return whether to read a metric after the training epoch; None for Lightning's default.

    A validation metric is read right after the validation.
    """
    if monitor is None:
        return None
    return True if monitor.startswith("train") else False if monitor.startswith("val") else None
