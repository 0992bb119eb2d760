"""When to keep the weights, and when to stop."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from proj.engine.runs.weights import load_fitting
from proj.errors import TrainingError
from proj.schema import Schema


class BestCheckpoint(lightning.ModelCheckpoint):
    """``best.ckpt`` by a metric.

    Every checkpoint holds the experiment's config and the data's schema as plain values, so that it can be used with nothing
    else.

    Args:
        monitor: metric to choose the best epoch by; null means the model's own (``val/f1``, ``val/rmse``).
        mode: which way is better; null means the metric's own way.
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
        self.best_metrics: dict[
            str, float
        ] = {}  # all metrics, as they were when best.ckpt was written
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
        before = self.best_model_score
        super().on_validation_end(trainer, pl_module)
        self._keep_metrics(trainer, before)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        before = self.best_model_score
        super().on_train_epoch_end(trainer, pl_module)
        self._keep_metrics(trainer, before)

    def _keep_metrics(self, trainer: Trainer, before: Tensor | None) -> None:
        if self.best_model_score is not before or self.monitor is None:
            self.best_metrics = {
                name: value.item() for name, value in trainer.callback_metrics.items()
            }

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best_metrics": self.best_metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on choosing the best, in a folder that may have been moved. A new run (``--ckpt_path``) chooses it anew."""
        best = Path(str(self.dirpath)) / "best.ckpt"
        if not best.is_file():
            return
        self.best_metrics = state_dict.get("best_metrics", {})
        path = str(best) if state_dict["best_model_path"] else ""
        scores = {str(best): score for score in state_dict["best_k_models"].values()}
        paths = {
            "best_model_path": path,
            "kth_best_model_path": path and state_dict["kth_best_model_path"] and path,
        }
        super().load_state_dict(
            {**state_dict, **paths, "best_k_models": scores, "dirpath": self.dirpath}
        )
        self.current_score = state_dict["current_score"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for name, values in pl_module.named_parameters():
            if not torch.isfinite(values).all():
                raise TrainingError(
                    f"{name} is not finite any more in epoch {trainer.current_epoch}: expected finite weights; lower the "
                    "learning rate, clip gradients, or look for extreme inputs. Earlier checkpoints are kept."
                )
        if self.schema is None:  # which is long, and stays as it is
            schema = getattr(pl_module, "schema", None) or getattr(
                getattr(trainer, "datamodule", None), "schema", None
            )
            self.schema = schema.to_dict() if isinstance(schema, Schema) else None
        checkpoint["config"], checkpoint["schema"] = self.config, self.schema

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if not self.best_model_path:
            rank_zero_warn(
                "no validation took place, so there is no best.ckpt; `--ckpt_path last` names the last epoch's."
            )


class EarlyStopping(lightning.EarlyStopping):
    """Stop when a metric has not improved for a number of validations.

    Args:
        monitor: the metric; null means the one the best checkpoint is chosen by.
        mode: which way is better; null means the metric's own way.
        patience: validations without improvement to wait for; null switches early stopping off.
        min_delta: the least change that counts as an improvement, in the metric's unit.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        patience: int | None = None,
        min_delta: float = 0.0,
    ) -> None:
        self.patience_before = patience or 0  # than training was gone on with
        super().__init__(
            monitor=monitor or "",
            mode=mode or "min",
            patience=patience or 0,
            min_delta=min_delta,
            check_on_train_epoch_end=_after_training_epoch(monitor),
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.patience_before = state_dict["patience"]
        super().load_state_dict({**state_dict, "patience": self.patience})

    @property
    def goes_on(self) -> bool:
        """Whether it has more patience than before, and some of it left."""
        return self.patience > self.patience_before and self.wait_count < self.patience


class InitialWeights(lightning.Callback):
    """Start from the weights of a checkpoint, as far as they fit; what fits is told in ``report``."""

    def __init__(self, state: dict[str, Any], source: str) -> None:
        self.state, self.source, self.report = state, source, ""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report = load_fitting(pl_module, self.state, self.source)


def _after_training_epoch(monitor: str | None) -> bool | None:
    """Look at a validation metric right after validation; at a training metric after the epoch; else as Lightning does."""
    if monitor is None:
        return None
    return True if monitor.startswith("train") else False if monitor.startswith("val") else None
