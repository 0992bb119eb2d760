"""What one sees of single steps: the progress bar, and curves of the loss, the gradients' norm and the learning rates."""

import contextlib
import copy
import io
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim import Optimizer

from proj.data.base import DataModule
from proj.data.loader import take
from proj.engine.callbacks.best_checkpoint import BestCheckpoint
from proj.models.base import Model
from proj.models.checks import evaluating
from proj.models.module import scale_images
from proj.schema import Tensors

FRAMES = 10  # of the progress bar a second


class StepProgressBar(RichProgressBar):
    """Lightning's progress bar in steps, with the last step's loss, without the last letters of the run's name.

    It is drawn ten times a second. Lightning's way, after each batch, takes a tenth of the time of a tiny net.
    """

    loss: Tensor | None = None
    drawn = 0.0  # when, by the monotonic clock

    def __init__(self) -> None:
        super().__init__(refresh_rate=FRAMES)

    @property
    def total_train_batches(self) -> int | float:
        return getattr(self.trainer.train_dataloader, "batches", super().total_train_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.loss = outputs.get("loss") if isinstance(outputs, dict) else None
        done = getattr(trainer.train_dataloader, "position", batch_idx + 1)
        if done == self.total_train_batches or time.monotonic() - self.drawn >= 1 / FRAMES:
            self.drawn = time.monotonic()
            super().on_train_batch_end(trainer, pl_module, outputs, batch, done - 1)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        items: dict[str, Any] = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return items if self.loss is None else {"train/loss_step": self.loss.item(), **items}


class StepLogger(Callback):
    """Log the loss of a step, the norm of its gradients before clipping, and the learning rates, as often as the Trainer
    logs. Of a block of steps, the last one is looked at.
    """

    def __init__(self) -> None:
        self.logged = -1  # how often so far, in multiples of `log_every_n_steps`
        self.values: dict[str, Tensor | float] = {}  # of the step to log

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.logged = (trainer.global_step - 1) // self._every(trainer)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if trainer.loggers and trainer.global_step // self._every(trainer) > self.logged:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norm = (
                nn.utils.get_total_norm(gradients)
                if gradients
                else cast(Any, pl_module).compiled_step.gradient_norm
            )
            self.values = {"gradient_norm": norm, **_rates(trainer.optimizers)}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.values:
            return
        self.logged = (trainer.global_step - 1) // self._every(trainer)
        if isinstance(outputs, dict) and "loss" in outputs:
            self.values["train/loss_step"] = outputs["loss"]
        values = {name: float(value) for name, value in self.values.items()}
        self.values = {}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def _every(self, trainer: Trainer) -> int:
        return cast(int, cast(Any, trainer).log_every_n_steps) or sys.maxsize


def _rates(optimizers: list[Optimizer]) -> dict[str, float]:
    """The learning rate of each group, under the names that Lightning's LearningRateMonitor gives."""
    rates: dict[str, float] = {}
    for optimizer in optimizers:
        name, groups = f"lr-{type(optimizer).__name__}", optimizer.param_groups
        for i, group in enumerate(groups, 1):
            rates[name if len(groups) == 1 else f"{name}/pg{i}"] = float(group["lr"])
    return rates


class RunLogger(TensorBoardLogger):
    """TensorBoard events right in the run's folder, which has its ``config.yaml`` already.

    ``purge_step`` is the first step that is drawn anew, when training goes on: what was drawn there is forgotten.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        super().__init__(
            folder.parent,
            name="",
            version=folder.name,
            default_hp_metric=False,
            purge_step=purge_step,
        )
        self.goes_on = purge_step is not None

    def save(self) -> None:
        """Write no ``hparams.yaml`` beside it."""


class TensorBoardSummary(Callback):
    """The config as text at the start, charts and the graph after the first validation, hyper-parameters at the end."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.told = False  # of charts and the graph

    def state_dict(self) -> dict[str, Any]:
        return {"told": self.told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.told = state_dict["told"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        text = yaml.safe_dump(self.config, sort_keys=False)
        for logger in _boards(trainer):
            if not getattr(
                logger, "goes_on", False
            ):  # a new run, perhaps from another one's checkpoint
                self.told = False
                logger.experiment.add_text("config", f"```yaml\n{text}```")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names = sorted(
            name.removeprefix("val/")
            for name in trainer.callback_metrics
            if name.startswith("val/")
        )
        if self.told or (
            trainer.enable_validation and not names
        ):  # the first validation comes in a later epoch
            return
        self.told = True
        for logger in _boards(trainer):
            if names:  # each a pattern of the curves' names
                charts = {
                    name: [
                        "Multiline",
                        [f"{stage}/{re.escape(name)}$" for stage in ("train", "val")],
                    ]
                    for name in names
                }
                logger.experiment.add_custom_scalars({"train and val": charts})
            if trainer.is_global_zero and (x := _example(trainer, pl_module)) is not None:
                draw_graph(logger, cast(Model, pl_module), x)

    def on_fit_end(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:  # also where there was nothing left to train
        best = next(
            (c.best_metrics for c in cast(Any, trainer).callbacks if isinstance(c, BestCheckpoint)),
            {},
        )
        for logger in _boards(trainer):
            values = {f"best/{name}": value for name, value in best.items()}
            # one step on, so that they are forgotten, like any later curve, where training goes on from here
            logger.log_hyperparams(flatten_config(self.config), values, trainer.global_step + 1)


def _boards(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _example(trainer: Any, model: LightningModule) -> Tensors | None:
    """Two rows to draw the graph with; None where the net is not ours to call, or not whole in one process."""
    data, whole = (
        trainer.datamodule,
        isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy),
    )
    if not whole or not isinstance(model, Model) or not isinstance(data, DataModule):
        return None
    x: Tensors = move_data_to_device(
        take(data.splits["train"], torch.arange(min(2, data.rows("train")))).x, model.device
    )
    return x  # as they are, by none of the hooks that change pictures in training


def draw_graph(logger: TensorBoardLogger, model: Model, x: Tensors) -> None:
    """The net's graph, traced with some rows; a warning where that cannot be done, since training can go on without."""
    assert isinstance(model.net, nn.Module)
    net = (
        copy.deepcopy(model.net) if model.compile_mode == "net" else model.net
    )  # a copy is not compiled
    try:
        with (
            isolate_rng(),
            evaluating(net),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")  # branches and numbers that a trace takes as they were
            logger.experiment.add_graph(net, (scale_images(x),))
    except Exception as error:  # of whatever kind a net may raise when it is traced
        reason = " ".join(str(error).split())[:200]
        rank_zero_warn(
            f"TensorBoard shows no graph: {type(net).__name__} cannot be traced: {reason}"
        )


def flatten_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The config's leaves by dotted key, without the words ``class_path`` and ``init_args``.

    >>> flat({"model": {"class_path": "M", "init_args": {"lr": 0.1}}})
    {'model': 'M', 'model.lr': 0.1}
    """
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        key = prefix if name in ("class_path", "init_args") else f"{prefix}.{name}".strip(".")
        if isinstance(value, dict):
            leaves |= flatten_config(value, key)
        elif value is not None:
            leaves[key] = value if isinstance(value, bool | int | float | str) else str(value)
    return leaves
