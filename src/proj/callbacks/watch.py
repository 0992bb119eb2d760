"""What TensorBoard shows beside the metrics: gradient norm, the config as text, hyper-parameters with final metrics."""

from pathlib import Path
from typing import Any, cast

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.optim import Optimizer

from proj.callbacks.checkpoint import Checkpoint


class RunLogger(TensorBoardLogger):
    """TensorBoard events right in the run's folder, which has its ``config.yaml`` already."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parent, name="", version=folder.name, default_hp_metric=False)

    def save(self) -> None:
        """Write no ``hparams.yaml`` beside it."""


class Progress(RichProgressBar):
    """Lightning's progress bar, without the last letters of the run's name."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        items: dict[str, Any] = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return items


class GradientNorm(Callback):
    """Log the norm of all gradients, before clipping, as often as the Trainer logs."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        every = cast(Any, trainer).log_every_n_steps
        if every > 0 and trainer.global_step % every == 0:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            for logger in trainer.loggers:
                logger.log_metrics({"gradient_norm": norm.item()}, step=trainer.global_step)


class Summary(Callback):
    """The config as text at the start; the hyper-parameters with the best epoch's metrics at the end."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                text = yaml.safe_dump(self.config, sort_keys=False)
                logger.experiment.add_text("config", f"```yaml\n{text}```")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = next((c.best_metrics for c in cast(Any, trainer).callbacks if isinstance(c, Checkpoint)), {})
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(flat(self.config), {f"best/{name}": value for name, value in best.items()})


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The config's leaves by dotted key, without the words ``class_path`` and ``init_args``.

    >>> flat({"model": {"class_path": "M", "init_args": {"lr": 0.1}}})
    {'model': 'M', 'model.lr': 0.1}
    """
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        key = prefix if name in ("class_path", "init_args") else f"{prefix}.{name}".strip(".")
        if isinstance(value, dict):
            leaves |= flat(value, key)
        elif value is not None:
            leaves[key] = value if isinstance(value, bool | int | float | str) else str(value)
    return leaves
